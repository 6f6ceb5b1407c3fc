"""Finds the tensors of a checkpoint, wherever they lie: a fine-tune's own, its base's, its towers'."""

import torch

from vllm_videollava.checkpoints.config import TOWER_FIELDS, VideoLlavaConfig
from vllm_videollava.checkpoints.fine_tune import FineTune, find_fine_tune
from vllm_videollava.checkpoints.weight_files import find_file, whole_model_files
from vllm_videollava.conversion.files import StoredTensor, read_all, store
from vllm_videollava.model.merging import Factors, add, join_names, split_own

EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"

Model = dict[str, StoredTensor]
"""Tensors by this model's names."""


def open_model(checkpoint: str, config: VideoLlavaConfig) -> Model:
    """Return a checkpoint's tensors, with a fine-tune's in its base's; weights that an adapter changes are float32.

    Args:
        checkpoint: the folder or repository; files may have to be downloaded.
        config: its config, which `check_config` has checked.

    Raises:
        ValueError: there are no weights, a file cannot be read, or a fine-tune does not fit its base.
    """
    if fine_tune := find_fine_tune(checkpoint, config.original_values or {}):
        base = store(whole_model_files(config.base_model))
        if not base:
            raise ValueError(f"{checkpoint} changes the model {config.base_model}, whose weights cannot be found.")
        model = _merge(checkpoint, fine_tune, base)
    else:
        model = store(whole_model_files(checkpoint))
        if not model:
            raise ValueError(f"{checkpoint} has no weights; it must have a whole model, an adapter or a projector.")
    for modality, field in TOWER_FIELDS.items():
        _add_tower(model, f"{modality}_tower", field, getattr(config, f"{modality}_tower_source"))
    if config.tie_word_embeddings:
        _tie(model)
    return model


def _merge(checkpoint: str, fine_tune: FineTune, base: Model) -> Model:
    own = read_all(find_file(checkpoint, name) for name in fine_tune.files)
    replacements, factors = split_own(own, fine_tune.adapter)
    changed = factors.keys() & (base.keys() - replacements.keys())
    if unused := factors.keys() - changed:
        raise ValueError(f"The adapter changes what its base does not have: {join_names(unused)}.")
    merged = {name: _with_factors(base[name], factors[name]) for name in changed}
    return base | merged | {name: _loaded(*replacement) for name, replacement in replacements.items()}


def _with_factors(stored: StoredTensor, factors: Factors) -> StoredTensor:
    on_meta = Factors(factors.a.to("meta"), factors.b.to("meta"), factors.scale)
    # This refuses what does not fit before anything is read.
    spec = add(stored.name, stored.spec, on_meta)
    return StoredTensor(stored.name, spec, lambda: add(stored.name, stored.read(), factors))


def _loaded(name: str, tensor: torch.Tensor) -> StoredTensor:
    return StoredTensor(name, torch.empty_like(tensor, device="meta"), lambda: tensor)


def _add_tower(model: Model, tower: str, field: str, location: str | None) -> None:
    """Add a tower's own weights if the checkpoint has none, as serving does."""
    if location is None or any(name.startswith(f"{tower}.") for name in model):
        return
    weights = store(whole_model_files(location), prefix=f"{tower}.")
    if not weights:
        raise ValueError(
            f"The checkpoint has no weights of the {tower.replace('_', ' ')}, and {field} is {location!r}, "
            "which has none either; it must be a folder or repository with the tower's weights."
        )
    model.update(weights)


def _tie(model: Model) -> None:
    """Leave one tensor for the embeddings and the head.

    Raises:
        ValueError: they differ.
    """
    head = model.pop(HEAD, None)
    if head is None:
        return
    embeddings = model.setdefault(EMBEDDINGS, head)
    if embeddings is not head and not torch.equal(embeddings.read(), head.read()):
        raise ValueError(
            f"The checkpoint's tensor {head.name} differs from the embeddings, "
            "though tie_word_embeddings is true in its config.json."
        )
