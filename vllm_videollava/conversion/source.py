"""Opens a checkpoint: its config, and its tensors wherever they lie (a fine-tune's own, its base's, its towers')."""

from pathlib import Path

import torch
from transformers import AutoConfig

from vllm_videollava.checkpoints.adapter_config import read_json_object
from vllm_videollava.checkpoints.config import (
    TOWER_FIELDS,
    VideoLlavaConfig,
    check_config,
    is_original_format,
    register,
)
from vllm_videollava.checkpoints.fine_tune import FineTune, find_fine_tune
from vllm_videollava.checkpoints.weight_files import find_file, whole_model_files
from vllm_videollava.conversion.files import StoredTensor, read_all, store
from vllm_videollava.decoding.errors import shorten
from vllm_videollava.tensors.merging import Factors, add, join_names, split_own
from vllm_videollava.tensors.names import EMBEDDINGS, HEAD

Model = dict[str, StoredTensor]
"""Tensors by this model's names."""


def read_config(checkpoint: str, base: str | None = None) -> VideoLlavaConfig:
    """Read and check the config of a checkpoint that is not quantised.

    Args:
        checkpoint: the folder or repository.
        base: the base's folder or repository, if the checkpoint is a fine-tune that does not name it.

    Raises:
        ValueError: there is no such checkpoint, or it cannot be served.
    """
    path = find_file(checkpoint, "config.json")
    if path is None:
        raise ValueError(f"{checkpoint} has no config.json; it must be the folder or repository of a checkpoint.")
    values = read_json_object(path)
    if not is_original_format(values) and values.get("model_type") != VideoLlavaConfig.model_type:
        raise ValueError(f"{checkpoint} is not Video-LLaVA: its model_type is {shorten(values.get('model_type'))}.")
    register()
    config = AutoConfig.from_pretrained(checkpoint)
    if getattr(config, "quantization_config", None) or getattr(config, "compression_config", None):
        raise ValueError(f"{checkpoint} is quantised; only weights that are not can be converted.")
    if base:
        if not find_fine_tune(checkpoint, config.original_values or {}):
            raise ValueError(f"--base is {base}, but {checkpoint} has no adapter and is not a projector alone.")
        config.update({"base_model": str(Path(base).absolute()) if Path(base).is_dir() else base})
    check_config(config, checkpoint, "name the base with --base FOLDER OR REPOSITORY")
    return config


def open_model(checkpoint: str, config: VideoLlavaConfig) -> Model:
    """Return a checkpoint's tensors, with a fine-tune's in its base's; weights that an adapter changes are float32.

    Args:
        checkpoint: the folder or repository; files may have to be downloaded.
        config: its config, which `read_config` has checked.

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
