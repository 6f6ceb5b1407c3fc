"""Recognises the folders that fine-tuning writes instead of a whole model: a LoRA adapter's, and a projector's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vllm_videollava.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterConfig, read_adapter_config
from vllm_videollava.checkpoints.weight_files import check_file, find_file, has_whole_model, list_files
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
    files = list_files(checkpoint)
    for name in (*ADAPTER_FILES, ADAPTER_CONFIG):
        if name in files:
            return _find_adapter(checkpoint, values, name)
    if has_whole_model(checkpoint):
        return None
    if PROJECTOR in files:
        return FineTune("projector", (PROJECTOR,), _base_in_config(checkpoint, values))
    if TRAINABLES in files:
        raise ValueError(f"{checkpoint} has {TRAINABLES}, but {ADAPTER_CONFIG} and the adapter are missing.")
    return None


def _find_adapter(checkpoint: str, values: Mapping[str, Any], found: str) -> FineTune:
    if has_whole_model(checkpoint):
        raise ValueError(
            f"{checkpoint} has an adapter ({found}) and a whole model; move one of them to another folder."
        )
    adapter, adapter_file = read_adapter(checkpoint)
    has_trainables = TRAINABLES in list_files(checkpoint)
    if not has_trainables and "mm_video_tower" in values:
        raise ValueError(lacks_trainables(checkpoint))
    files = (adapter_file, TRAINABLES) if has_trainables else (adapter_file,)
    return FineTune("adapter", files, adapter.base or _base_in_config(checkpoint, values), adapter)


def lacks_trainables(checkpoint: str) -> str:
    """Return a sentence about an adapter for the original's format that came without its projector."""
    return (
        f"{checkpoint} has an adapter, but {TRAINABLES} is missing, which has the trained projector; "
        "copy it from the folder where the training ended."
    )


def read_adapter(checkpoint: str) -> tuple[AdapterConfig, str]:
    """Return the config of a folder's or repository's adapter, and the name of its file of weights.

    Raises:
        ValueError: one of the two is missing, or the adapter is of a kind that cannot be merged.
    """
    config = find_file(checkpoint, ADAPTER_CONFIG)
    file = next((name for name in ADAPTER_FILES if name in list_files(checkpoint)), None)
    if config is None and file is None:
        raise ValueError(f"{checkpoint} has no adapter; it must have {ADAPTER_CONFIG}.")
    if config is None:
        raise ValueError(f"{checkpoint} has {file}, but {ADAPTER_CONFIG} is missing.")
    adapter = read_adapter_config(config)
    if file is None:
        raise ValueError(f"{checkpoint} has {ADAPTER_CONFIG}, but {' or '.join(ADAPTER_FILES)} is missing.")
    return adapter, file


def _base_in_config(checkpoint: str, values: Mapping[str, Any]) -> str | None:
    base = values.get("_name_or_path")
    # transformers fills in the folder that the config was read from.
    return base if isinstance(base, str) and base not in ("", checkpoint) else None


def locate_base(base: str, checkpoint: str) -> str:
    """Return a base's folder, whose path may be relative to the fine-tune's own folder, or its repository."""
    folder = Path(checkpoint) / base
    return str(folder) if folder.is_dir() else base


def check_fine_tune(
    checkpoint: str, files: tuple[str, ...], base: str | None, how_to_name_base: str = HOW_TO_NAME_BASE
) -> None:
    """Check the files of a fine-tune, and that there is a base with weights.

    Args:
        how_to_name_base: ends the sentence about a base that cannot be found.

    Raises:
        ValueError: a file is damaged, or the base is missing or is no base.
    """
    for name in files:
        if path := find_file(checkpoint, name):
            check_file(path)
    if base is None:
        raise ValueError(f"{checkpoint} does not name the model that it changes; {how_to_name_base}.")
    quoted = repr(base) if len(base) <= 100 else shorten(base)
    if not list_files(base):
        raise ValueError(
            f"{checkpoint} changes the model {quoted}, which is neither a folder nor a repository within reach; "
            f"{how_to_name_base}."
        )
    if not has_whole_model(base):
        raise ValueError(
            f"{checkpoint} changes the model {quoted}, which does not have a whole model; {how_to_name_base}."
        )
