"""The config class for both checkpoint formats, the original's and transformers'."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, LlamaConfig, LlavaConfig, PreTrainedConfig

from vllm_videollava.checkpoints.fine_tune import HOW_TO_NAME_BASE, check_fine_tune, find_fine_tune, locate_base
from vllm_videollava.checkpoints.tower_config import TowerConfig, locate_tower, read_tower_config, tower_config
from vllm_videollava.checkpoints.weight_files import check_whole_model
from vllm_videollava.decoding.errors import shorten
from vllm_videollava.decoding.pixel_format import PixelFormat

ARCHITECTURE = "VideoLlavaForConditionalGeneration"
"""The name of the model class in vLLM and transformers."""
TOWER_FIELDS = {"image": "mm_image_tower", "video": "mm_video_tower"}
"""The fields of the original's config.json that name the towers, by modality."""
LOCATIONS = {"base_model", *TOWER_FIELDS.values()}
"""What `hf_overrides` may change of a checkpoint in the original format, because it only says where weights are."""


class VideoLlavaConfig(PreTrainedConfig):
    """The configs of both checkpoint formats, in one form.

    `from_dict` takes the config.json of either format. The class has the same
    name as transformers' own config, because transformers' auto classes look
    for `VideoLlavaForConditionalGeneration` by that name.
    """

    model_type = "video_llava"
    sub_configs: ClassVar = {"text_config": LlamaConfig, "image_config": TowerConfig, "video_config": TowerConfig}

    text_config: LlamaConfig | dict | None = None
    image_config: TowerConfig | dict | None = None
    video_config: TowerConfig | dict | None = None
    # The hidden state that is taken from the towers, in transformers' numbering: -2 skips the last layer.
    vision_feature_layer: int = -2
    image_keeps_cls: bool = False
    projector_depth: int = 2
    projector_hidden_act: str = "gelu"
    projector_bias: bool = True
    # Whether pixels and prompt ids are made as by the original code, rather than as by transformers.
    original_format: bool = True
    # Frames sampled from a video.
    num_frames: int = 8
    # A setting of the language model that transformers and vLLM look for here.
    tie_word_embeddings: bool = False
    # Folder or repository with each tower's own weights, for checkpoints that may come without them.
    image_tower_source: str | None = None
    video_tower_source: str | None = None
    # The original's config.json, from which all of the above are made again if `hf_overrides` names other towers.
    original_values: dict | None = None
    # What prevents serving unless `hf_overrides` names other towers.
    tower_fault: str | None = None
    # Folder or repository of the model that a fine-tune changes.
    base_model: str | None = None

    def __post_init__(self, **kwargs):
        self.text_config = _as_config(self.text_config, LlamaConfig)
        self.image_config = _as_config(self.image_config, TowerConfig)
        self.video_config = _as_config(self.video_config, TowerConfig)
        self.architectures = [ARCHITECTURE]
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Build the config from the config.json of either format, or from one that this class has written.

        Raises:
            ValueError: the checkpoint cannot be served; the sentence names the
                field, its value and what is supported.
        """
        checkpoint = str(kwargs.get("name_or_path", config_dict.get("_name_or_path", "")))
        if not is_original_format(config_dict) and "vision_config" not in config_dict:
            return super().from_dict(config_dict, **kwargs)
        base = None
        if fine_tune := find_fine_tune(checkpoint, config_dict):
            base = fine_tune.base and locate_base(fine_tune.base, checkpoint)
            # It says how the base was held in memory while it was trained.
            config_dict = {name: value for name, value in config_dict.items() if name != "quantization_config"}
        if is_original_format(config_dict):
            config_dict = _from_original(config_dict, checkpoint, base)
        else:
            config_dict = _from_transformers(config_dict) | {"base_model": base}
        return super().from_dict(config_dict, **kwargs)

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set fields, as vLLM does with `hf_overrides`; the names of towers and of a base are read as in config.json.

        Raises:
            ValueError: the checkpoint cannot be served with such towers.
        """
        if base := config_dict.get("base_model"):
            config_dict = config_dict | {"base_model": locate_base(str(base), self.name_or_path)}
        if self.original_values and config_dict.keys() & LOCATIONS:
            towers = {name: config_dict[name] for name in TOWER_FIELDS.values() if name in config_dict}
            base = config_dict.get("base_model", self.base_model)
            super().update(_from_original(self.original_values | towers, self.name_or_path, base))
            config_dict = {name: value for name, value in config_dict.items() if name not in LOCATIONS}
        super().update(config_dict)

    def num_computed_layers(self, tower: TowerConfig) -> int:
        """Return how many of a tower's layers are computed; the selected hidden state comes after the last of them."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else tower.num_hidden_layers + 1 + layer

    @property
    def tokens_per_image(self) -> int:
        return self.image_config.num_positions - (not self.image_keeps_cls)

    @property
    def tokens_per_video(self) -> int:
        return self.num_frames * self.video_config.num_positions

    @property
    def tokens_per_item(self) -> dict[str, int]:
        """The number of tokens that one image or video takes, by modality."""
        return {"image": self.tokens_per_image, "video": self.tokens_per_video}

    @property
    def embedding_shapes(self) -> dict[str, list[tuple[int, int]]]:
        """The shapes of what the projector makes of one image or video, and of what it is given, by modality."""
        sizes = self.text_config.hidden_size, self.image_config.hidden_size
        return {modality: [(tokens, size) for size in sizes] for modality, tokens in self.tokens_per_item.items()}

    @property
    def pixel_format(self) -> PixelFormat:
        sizes = self.image_config.image_size, self.video_config.image_size
        return PixelFormat(self.num_frames, *sizes, original=self.original_format)


class LlavaConfigDispatch(LlavaConfig):
    """Stands in for `LlavaConfig`: both LLaVA and the original Video-LLaVA call themselves "llava"."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        config_class = VideoLlavaConfig if is_original_format(config_dict) else LlavaConfig
        return config_class.from_dict(config_dict, **kwargs)


def register() -> None:
    """Make transformers' `AutoConfig` return `VideoLlavaConfig` for both formats."""
    AutoConfig.register("llava", LlavaConfigDispatch, exist_ok=True)
    AutoConfig.register("video_llava", VideoLlavaConfig, exist_ok=True)


def is_original_format(config_dict: dict[str, Any]) -> bool:
    """Tell whether this is the original code's config.json (LLaVA's has `text_config` or `mm_vision_tower`)."""
    return "mm_video_tower" in config_dict and "text_config" not in config_dict


def check_config(config: VideoLlavaConfig, checkpoint: str, how_to_name_base: str = HOW_TO_NAME_BASE) -> None:
    """Check what can be known of a checkpoint without reading its tensors, when `hf_overrides` are applied.

    Args:
        config: the checkpoint's config.
        checkpoint: its folder or repository.
        how_to_name_base: ends the sentence about a base that cannot be found.

    Raises:
        ValueError: its towers or its base cannot be found, or a file is missing or damaged.
    """
    fine_tune = find_fine_tune(checkpoint, config.original_values or {})
    if fine_tune:
        check_fine_tune(checkpoint, fine_tune.files, config.base_model, how_to_name_base)
    elif config.base_model:
        raise ValueError(f"hf_overrides has base_model, but {checkpoint} has a whole model; leave it out.")
    if config.tower_fault:
        raise ValueError(config.tower_fault)
    for folder in (checkpoint, config.base_model):
        if folder and Path(folder).is_dir():
            check_whole_model(Path(folder))


def check_overrides(config: VideoLlavaConfig, overrides: Mapping[str, Any] | Callable) -> None:
    """Check a config to which vLLM has applied `hf_overrides`.

    Raises:
        ValueError: an override changes what the weights mean, or has no effect.
    """
    for name in overrides if isinstance(overrides, Mapping) else ():
        if name == "base_model" or (name in LOCATIONS and config.original_values):
            continue
        if name.startswith("mm_") or name in _names_of_architecture():
            raise ValueError(f"hf_overrides cannot change {shorten(name)}, which the weights determine; leave it out.")
        if name in _own_fields(LlamaConfig) - _own_fields(VideoLlavaConfig):
            raise ValueError(f"hf_overrides has {shorten(name)}, which belongs in 'text_config'; put it there.")
    tower = config.video_config
    if tower.add_time_attn and config.num_frames != tower.num_frames:
        raise ValueError(
            f"num_frames is {shorten(config.num_frames)}, but the video tower attends over {tower.num_frames} frames; "
            "the two must be equal."
        )
    _check_layer("vision_feature_layer", config.vision_feature_layer, config.image_config, tower)


def _names_of_architecture() -> set[str]:
    """Return the fields, of our config and of transformers', that describe the towers and the projector."""
    from transformers.models.video_llava import VideoLlavaConfig as TransformersConfig

    both = _own_fields(VideoLlavaConfig) | _own_fields(TransformersConfig)
    return both - _own_fields(LlamaConfig) - {"text_config"}


def _own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    return {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}


def _from_original(values: dict[str, Any], checkpoint: str, base: str | None) -> dict[str, Any]:
    if values.get("mm_use_im_start_end"):
        raise ValueError(
            "mm_use_im_start_end is true; it must be false, because start and end tokens are not supported."
        )
    feature = values.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ValueError(f"mm_vision_select_feature is {feature!r}; it must be 'patch' or 'cls_patch'.")
    try:
        towers = _read_towers(values, [checkpoint, *([base] if base else [])])
    except ValueError as error:
        # Until `hf_overrides` are applied, it is too early to refuse the checkpoint.
        towers = {"tower_fault": str(error)}
    return {
        **_shared_fields(values),
        "text_config": LlamaConfig(**_llama_fields(values)),
        "image_keeps_cls": feature == "cls_patch",
        "projector_depth": _original_projector_depth(values.get("mm_projector_type", "linear")),
        "tie_word_embeddings": values.get("tie_word_embeddings", False),
        "original_values": values,
        "base_model": base,
        "tower_fault": None,
        **towers,
    }


def _read_towers(values: dict[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    image_source, image_config = _original_tower(values, TOWER_FIELDS["image"], folders)
    video_source, video_config = _original_tower(values, TOWER_FIELDS["video"], folders)
    layer = values.get("mm_vision_select_layer", -2)
    _check_layer("mm_vision_select_layer", layer, image_config, video_config)
    hidden_sizes = {image_config.hidden_size, video_config.hidden_size, values.get("mm_hidden_size")} - {None}
    if len(hidden_sizes) != 1:
        raise ValueError(
            f"mm_hidden_size is {_show(values.get('mm_hidden_size'))}, the image tower has {image_config.hidden_size} "
            f"features and the video tower {video_config.hidden_size}; they must be equal."
        )
    return {
        "image_config": image_config,
        "video_config": video_config,
        "vision_feature_layer": layer,
        "num_frames": video_config.num_frames,
        "image_tower_source": image_source,
        "video_tower_source": video_source,
    }


def _original_tower(values: dict[str, Any], field: str, folders: Sequence[str]) -> tuple[str, TowerConfig]:
    name = values.get(field)
    if not isinstance(name, str):
        raise ValueError(f"{field} is {_show(name)}; it must name a LanguageBind tower.")
    location = locate_tower(name, folders)
    return location, read_tower_config(field, location)


def _show(value: Any) -> str:
    return "null or missing" if value is None else repr(value)


def _check_layer(field: str, layer: Any, *towers: TowerConfig) -> None:
    most = min(tower.num_hidden_layers for tower in towers)
    if type(layer) is not int or not -most - 1 <= layer <= most:
        raise ValueError(f"{field} is {_show(layer)}; it must be a whole number from {-most - 1} to {most}.")


def _original_projector_depth(projector_type: Any) -> int:
    if projector_type == "linear":
        return 1
    if match := re.fullmatch(r"mlp([1-9]\d*)x_gelu", str(projector_type)):
        return int(match[1])
    raise ValueError(f"mm_projector_type is {_show(projector_type)}; it must be 'linear' or 'mlpNx_gelu'.")


def _from_transformers(values: dict[str, Any]) -> dict[str, Any]:
    layer = values.get("vision_feature_layer", -2)
    strategy = values.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ValueError(f"vision_feature_select_strategy is {strategy!r}; it must be 'default' or 'full'.")
    # transformers' own class fills in its defaults and reads older spellings.
    from transformers.models.video_llava import VideoLlavaConfig as TransformersConfig

    config = TransformersConfig.from_dict(dict(values))
    if not isinstance(config.text_config, LlamaConfig):
        raise ValueError(f"text_config has model_type {config.text_config.model_type!r}; it must be 'llama'.")
    tower = tower_config(config.vision_config.to_dict())
    _check_layer("vision_feature_layer", layer, tower)
    return {
        **_shared_fields(values),
        "text_config": config.text_config,
        "image_config": tower,
        "video_config": tower,
        "vision_feature_layer": layer,
        "image_keeps_cls": strategy == "full",
        "projector_hidden_act": config.projector_hidden_act,
        "projector_bias": config.multimodal_projector_bias,
        "original_format": False,
        # Older versions of transformers wrote only the inner value.
        "tie_word_embeddings": values.get("tie_word_embeddings", config.text_config.tie_word_embeddings),
    }


def _shared_fields(values: dict[str, Any]) -> dict[str, Any]:
    names = ("torch_dtype", "dtype", "quantization_config", "compression_config")
    return {name: values[name] for name in names if name in values}


def _llama_fields(values: dict[str, Any]) -> dict[str, Any]:
    # rope_theta and rope_scaling are older spellings that LlamaConfig turns into rope_parameters.
    known = {field.name for field in fields(LlamaConfig)} | {"torch_dtype", "rope_theta", "rope_scaling"}
    dropped = {"architectures", "id2label", "label2id"}
    return {name: value for name, value in values.items() if name in known - dropped}


def _as_config(value: PreTrainedConfig | dict | None, config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    return value if isinstance(value, PreTrainedConfig) else config_class(**(value or {}))
