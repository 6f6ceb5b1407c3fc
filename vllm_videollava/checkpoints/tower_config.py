"""The shape of a LanguageBind tower, and its location according to an original checkpoint's config."""

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig
from transformers.utils import cached_file

from vllm_videollava.checkpoints.weight_files import list_files

OFFICIAL_IMAGE_TOWER = "LanguageBind/LanguageBind_Image"
OFFICIAL_VIDEO_TOWER = "LanguageBind/LanguageBind_Video_merge"

# The vision_config of the two published repositories; it is here so that no network is needed.
_VIT_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
_OFFICIAL_SHAPES = {
    OFFICIAL_IMAGE_TOWER: _VIT_L_14,
    OFFICIAL_VIDEO_TOWER: {**_VIT_L_14, "add_time_attn": True, "num_frames": 8},
}


class TowerConfig(CLIPVisionConfig):
    """A CLIP vision transformer, with temporal attention over `num_frames` frames if `add_time_attn`.

    The defaults are those of LanguageBind's own config class, which does not
    write fields with default values to config.json.
    """

    model_type = "languagebind_tower"

    add_time_attn: bool = False
    num_frames: int = 1

    @property
    def num_positions(self) -> int:
        """The number of tokens of one frame: its patches and CLS."""
        return (self.image_size // self.patch_size) ** 2 + 1


def tower_config(values: dict[str, Any]) -> TowerConfig:
    """Build a `TowerConfig` from a `vision_config`; fields that do not shape the network are dropped."""
    known = {field.name for field in fields(TowerConfig)}
    return TowerConfig(**{name: value for name, value in values.items() if name in known})


def locate_tower(name: str, folders: Sequence[str]) -> str:
    """Return the folder or repository that a tower's name in a checkpoint's config refers to.

    A folder's path is absolute, or relative to the checkpoint or to its base.
    A path that does not exist here, such as one of the trainer's machine,
    stands for the folder beside the weights that has the same name, or else
    for the published repository. Any other name is that of a repository.

    Args:
        name: of the tower.
        folders: the checkpoint and, if it is a fine-tune, its base.
    """
    cached = re.search(r"(?:^|/)models--([^/]+?)--([^/]+)(?:/|$)", name)
    repository = f"{cached[1]}/{cached[2]}" if cached else name
    is_repository = repository.count("/") == 1 and not repository.startswith(("/", ".", "~"))
    last = Path(repository).name
    published = {Path(official).name: official for official in _OFFICIAL_SHAPES}
    if is_repository and last in published and repository not in _OFFICIAL_SHAPES:
        # It may as well be a path of the trainer's machine.
        is_repository = bool(list_files(repository))
    for place in (name,) if is_repository else (name, last):
        for folder in folders:
            if place and (path := Path(folder) / place).is_dir():
                return str(path)
    return repository if is_repository else published.get(last, name)


def read_tower_config(field: str, location: str) -> TowerConfig:
    """Read the shape of the tower at `location`, the value of the config's `field`.

    Raises:
        ValueError: `location` has no readable config.json, or the file is not
            that of a LanguageBind tower.
    """
    if location in _OFFICIAL_SHAPES:
        return tower_config(_OFFICIAL_SHAPES[location])
    try:
        values = json.loads(Path(cached_file(location, "config.json")).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{field} is {location!r}, whose config.json cannot be read; it must be {OFFICIAL_IMAGE_TOWER}, "
            f"{OFFICIAL_VIDEO_TOWER}, or a folder or repository with the config.json of a LanguageBind tower."
        ) from error
    if not _is_languagebind(values):
        raise ValueError(
            f"{field} is {location!r}, which is not a LanguageBind tower: in its config.json, {_find_fault(values)}."
        )
    return tower_config(values["vision_config"])


def _find_fault(values: Any) -> str:
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type and not str(model_type).startswith("LanguageBind"):
        return f"model_type is {model_type!r}"
    return "vision_config is missing"


def _is_languagebind(values: Any) -> bool:
    if not isinstance(values, dict) or not isinstance(values.get("vision_config"), dict):
        return False
    model_type = values.get("model_type") or "LanguageBind"
    return str(model_type).startswith("LanguageBind") or "add_time_attn" in values["vision_config"]
