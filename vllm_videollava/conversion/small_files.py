"""The files of a checkpoint beside its weights and config.json."""

import json
import shutil
from pathlib import Path
from typing import Any

from vllm_videollava.checkpoints.weight_files import find_file

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION_CONFIG = "generation_config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def tokenizer_of(checkpoint: str, base: str | None) -> str:
    """Return the folder or repository that has a checkpoint's tokenizer: its own, or its base's.

    Raises:
        ValueError: neither has one.
    """
    for place in (checkpoint, base):
        if place and find_file(place, "tokenizer_config.json"):
            return place
    raise ValueError(f"{checkpoint} has no tokenizer_config.json; copy the files of its tokenizer into it.")


def copy_files(checkpoint: str, names: tuple[str, ...], folder: Path) -> None:
    """Copy those files that a folder or repository has."""
    for name in names:
        if path := find_file(checkpoint, name):
            shutil.copyfile(path, folder / name)


def write_json(path: Path, values: dict[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
