"""Recognises the folders that fine-tuning writes instead of a whole model: a LoRA adapter's, and a projector's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vllm_videollava.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterConfig, read_adapter_config
from vllm_videollava.checkpoints.weight_files import check_file, find_file, has_whole_model
from vllm_videollava.decoding.errors import shorten

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TRAINABLES = "non_lora_trainables.bin"
"""Has what a run with LoRA trained beside its adapter: the projector."""
PROJECTOR = "mm_projector.bin"
HOW_TO_NAME_BASE = """name the base with --hf-overrides '{"base_model": "FOLDER OR REPOSITORY"}'"""


class FineTune(NamedTuple):
    """A folder or repository that changes another model, its base.

    Attributes:
        kind: what it has: an adapter, with or without a projector, or a projector alone.
        files: the names of its files of weights.
        base: the base's folder or repository, as the fine-tune names it, or None.
        adapter: the adapter's config.
    """

    kind: Literal["adapter", "projector"]
    files: tuple[str, ...]
    base: str | None
    adapter: AdapterConfig | None = None


def find_fine_tune(checkpoint: str, values: Mapping[str, Any]) -> FineTune | None:
    """Return what a folder or repository changes, or None if it has a whole model, or no weights at all.

    Args:
        checkpoint: the folder or repository.
        values: its config.json.

    Raises:
        ValueError: it is part of a fine-tune, or several things at once.
    """
    if not checkpoint:
        return None
    adapter_config = find_file(checkpoint, ADAPTER_CONFIG)
    adapter_file = next((name for name in ADAPTER_FILES if find_file(checkpoint, name)), None)
    if adapter_config or adapter_file:
        return _find_adapter(checkpoint, values, adapter_config, adapter_file)
    if has_whole_model(checkpoint):
        return None
    if find_file(checkpoint, PROJECTOR):
        return FineTune("projector", (PROJECTOR,), _base_in_config(checkpoint, values))
    if find_file(checkpoint, TRAINABLES):
        raise ValueError(f"{checkpoint} has {TRAINABLES}, but {ADAPTER_CONFIG} and the adapter are missing.")
    return None


def _find_adapter(
    checkpoint: str, values: Mapping[str, Any], adapter_config: Path | None, adapter_file: str | None
) -> FineTune:
    if has_whole_model(checkpoint):
        raise ValueError(
            f"{checkpoint} has an adapter ({adapter_file or ADAPTER_CONFIG}) and a whole model; "
            "move one of them to another folder."
        )
    if adapter_config is None:
        raise ValueError(f"{checkpoint} has {adapter_file}, but {ADAPTER_CONFIG} is missing.")
    adapter = read_adapter_config(adapter_config)
    if adapter_file is None:
        raise ValueError(f"{checkpoint} has {ADAPTER_CONFIG}, but {' or '.join(ADAPTER_FILES)} is missing.")
    has_trainables = find_file(checkpoint, TRAINABLES) is not None
    if not has_trainables and "mm_video_tower" in values:
        raise ValueError(
            f"{checkpoint} has an adapter, but {TRAINABLES} is missing, which has the trained projector; "
            "copy it from the folder where the training ended."
        )
    files = (adapter_file, TRAINABLES) if has_trainables else (adapter_file,)
    return FineTune("adapter", files, adapter.base or _base_in_config(checkpoint, values), adapter)


def _base_in_config(checkpoint: str, values: Mapping[str, Any]) -> str | None:
    base = values.get("_name_or_path")
    # transformers fills in the folder that the config was read from.
    return base if isinstance(base, str) and base not in ("", checkpoint) else None


def locate_base(base: str, checkpoint: str) -> str:
    """Return a base's folder, whose path may be relative to the fine-tune's own folder, or its repository."""
    folder = Path(checkpoint) / base
    return str(folder) if folder.is_dir() else base


def check_fine_tune(checkpoint: str, files: tuple[str, ...], base: str | None) -> None:
    """Check the files of a fine-tune, and that there is a base with weights.

    Raises:
        ValueError: a file is damaged, or the base is missing or is no base.
    """
    for name in files:
        if path := find_file(checkpoint, name):
            check_file(path)
    if base is None:
        raise ValueError(f"{checkpoint} does not name the model that it changes; {HOW_TO_NAME_BASE}.")
    if not Path(base).is_dir():
        if base.startswith(("/", ".", "~")) or base.count("/") > 1:
            raise ValueError(f"{checkpoint} changes the model {shorten(base)}, which is no folder; {HOW_TO_NAME_BASE}.")
        return
    if not has_whole_model(base):
        raise ValueError(
            f"{checkpoint} changes the model {shorten(base)}, but that folder does not have a whole model; "
            f"{HOW_TO_NAME_BASE}."
        )
