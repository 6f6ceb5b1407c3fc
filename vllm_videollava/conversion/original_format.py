"""The original's format, as a converted checkpoint has it: the tensors' names, config.json, the towers' folders."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from vllm_videollava.checkpoints.config import TOWER_FIELDS, VideoLlavaConfig
from vllm_videollava.checkpoints.tower_config import OFFICIAL_IMAGE_TOWER, OFFICIAL_VIDEO_TOWER, TowerConfig
from vllm_videollava.conversion.names import replace_prefix
from vllm_videollava.conversion.small_files import TOKENIZER_FILES, copy_files, tokenizer_of, write_json
from vllm_videollava.conversion.source import Model

_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "multi_modal_projector.layers.": "model.mm_projector.",
    "image_tower.": "model.image_tower.image_tower.",
    "video_tower.": "model.video_tower.video_tower.",
}
_PUBLISHED = {"image": OFFICIAL_IMAGE_TOWER, "video": OFFICIAL_VIDEO_TOWER}
# Where a fine-tune began, on the machine where it was trained.
_LEFT_OVER = ("_name_or_path", "pretrain_mm_mlp_adapter")


class OriginalFormat:
    """Writes a checkpoint of the original's format in the same format.

    Args:
        checkpoint: its folder or repository.
        config: its config.

    Raises:
        ValueError: it has no tokenizer.
    """

    def __init__(self, checkpoint: str, config: VideoLlavaConfig) -> None:
        self._config = config
        self._tokenizer = tokenizer_of(checkpoint, config.base_model)

    def select(self, model: Model) -> Model:
        return model

    def tensor_name(self, name: str) -> str:
        if self._config.projector_depth == 1:
            name = name.replace("multi_modal_projector.layers.0.", "model.mm_projector.")
        return replace_prefix(name, _PREFIXES)

    def config(self) -> dict[str, Any]:
        """Return the values of config.json; a tower that is not a published one is named by a folder beside it."""
        values = {name: value for name, value in self._config.original_values.items() if name not in _LEFT_OVER}
        towers = {
            field: Path(published).name if modality in self._towers_beside() else published
            for (modality, field), published in zip(TOWER_FIELDS.items(), _PUBLISHED.values(), strict=True)
        }
        return values | towers | {"architectures": ["LlavaLlamaForCausalLM"]}

    def write_files(self, folder: Path) -> None:
        copy_files(self._tokenizer, TOKENIZER_FILES, folder)
        for modality in self._towers_beside():
            tower = folder / Path(_PUBLISHED[modality]).name
            tower.mkdir()
            vision_config = _vision_config(getattr(self._config, f"{modality}_config"))
            model_type = f"LanguageBind{modality.capitalize()}"
            write_json(tower / "config.json", {"model_type": model_type, "vision_config": vision_config})

    def _towers_beside(self) -> list[str]:
        """Return the modalities whose towers are not the published ones, of which the package knows the config."""
        return [
            modality
            for modality, published in _PUBLISHED.items()
            if getattr(self._config, f"{modality}_tower_source") != published
        ]


def _vision_config(tower: TowerConfig) -> dict[str, Any]:
    names = {field.name for field in fields(TowerConfig)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: getattr(tower, name) for name in sorted(names)}
