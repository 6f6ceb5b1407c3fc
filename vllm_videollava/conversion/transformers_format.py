"""transformers' format, as a converted checkpoint has it: the tensors' names, config.json, tokenizer and processor."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaTokenizer, PreTrainedConfig, VideoLlavaImageProcessor
from transformers import VideoLlavaConfig as TransformersConfig

from vllm_videollava.checkpoints.config import ARCHITECTURE, VideoLlavaConfig
from vllm_videollava.checkpoints.tower_config import TowerConfig
from vllm_videollava.conversion.files import StoredTensor
from vllm_videollava.conversion.names import replace_prefix
from vllm_videollava.conversion.small_files import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    copy_files,
    tokenizer_of,
    write_json,
)
from vllm_videollava.conversion.source import Model
from vllm_videollava.tensors.merging import join_names
from vllm_videollava.tensors.names import EMBEDDINGS, HEAD
from vllm_videollava.tensors.shapes import model_shapes

# The oldest names, which every version of transformers reads.
_PREFIXES = {
    "multi_modal_projector.layers.0.": "multi_modal_projector.linear_1.",
    "multi_modal_projector.layers.2.": "multi_modal_projector.linear_2.",
    "image_tower.": "image_tower.vision_model.",
    "video_tower.": "video_tower.vision_model.",
}
_TEMPORAL = (".temporal_embedding", ".temporal_attn.", ".temporal_layer_norm1.")
_PLACEHOLDERS = ["<image>", "<video>"]
# As in LanguageBind/Video-LLaVA-7B-hf.
_VOCABULARY_MULTIPLE = 64


class TransformersFormat:
    """Writes a checkpoint of transformers' format in the same format.

    Args:
        checkpoint: its folder or repository.
        config: its config.
        values: its config.json.

    Raises:
        ValueError: it has no tokenizer.
    """

    def __init__(self, checkpoint: str, config: VideoLlavaConfig, values: dict[str, Any]) -> None:
        self._places = [*filter(None, (config.base_model, checkpoint))]
        self._tokenizer = tokenizer_of(checkpoint, config.base_model)
        self._values = values

    def select(self, model: Model) -> Model:
        return model

    def tensor_name(self, name: str) -> str:
        return replace_prefix(name, _PREFIXES)

    def config(self) -> dict[str, Any]:
        return {name: value for name, value in self._values.items() if name != "_name_or_path"}

    def write_files(self, folder: Path) -> None:
        copy_files(self._tokenizer, TOKENIZER_FILES, folder)
        for place in self._places:
            copy_files(place, PROCESSOR_FILES, folder)


class FromOriginal:
    """Writes a checkpoint of the original's format in transformers' format, without attention over time.

    Args:
        checkpoint: its folder or repository.
        config: its config.

    Raises:
        ValueError: it has no tokenizer, or transformers' model cannot compute what it does.
    """

    def __init__(self, checkpoint: str, config: VideoLlavaConfig) -> None:
        _check_projector_and_towers(config)
        self._config = config
        self._tokenizer = LlamaTokenizer.from_pretrained(tokenizer_of(checkpoint, config.base_model))
        self._tokenizer.add_tokens(_PLACEHOLDERS, special_tokens=True)

    @property
    def _vocabulary_size(self) -> int:
        most = max(len(self._tokenizer), self._config.text_config.vocab_size)
        return -(-most // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE

    def select(self, model: Model) -> Model:
        """Return the tensors that transformers' model has, with a row for each token.

        Raises:
            ValueError: a tensor is missing that this package would not compute with.
        """
        names = [name for name in model_shapes(self._config) if not any(part in name for part in _TEMPORAL)]
        if missing := set(names) - model.keys():
            raise ValueError(f"The checkpoint lacks tensors that transformers' model has: {join_names(missing)}.")
        selected = {name: model[name] for name in names}
        for name in {EMBEDDINGS, HEAD} & selected.keys():
            selected[name] = _pad_stored(selected[name], self._vocabulary_size)
        return selected

    def tensor_name(self, name: str) -> str:
        return replace_prefix(name, _PREFIXES)

    def config(self) -> dict[str, Any]:
        ours = self._config
        image_id, video_id = self._tokenizer.convert_tokens_to_ids(_PLACEHOLDERS)
        return TransformersConfig(
            architectures=[ARCHITECTURE],
            text_config=LlamaConfig(**ours.text_config.to_dict() | {"vocab_size": self._vocabulary_size}),
            vision_config=CLIPVisionConfig(**_vision_config(ours.image_config)),
            image_token_index=image_id,
            video_token_index=video_id,
            vision_feature_layer=ours.vision_feature_layer,
            vision_feature_select_strategy=_select_strategy(ours),
            image_seq_length=ours.tokens_per_image,
            video_seq_length=ours.tokens_per_video,
            projector_hidden_act=ours.projector_hidden_act,
            multimodal_projector_bias=ours.projector_bias,
            tie_word_embeddings=ours.tie_word_embeddings,
        ).to_dict()

    def write_files(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)
        size, patch = self._config.image_config.image_size, self._config.image_config.patch_size
        images = VideoLlavaImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        kind = {"processor_class": "VideoLlavaProcessor"}
        write_json(folder / "preprocessor_config.json", images.to_dict() | kind)
        values = {"patch_size": patch, "vision_feature_select_strategy": _select_strategy(self._config)}
        write_json(folder / "processor_config.json", kind | values | {"num_additional_image_tokens": 1})


def _check_projector_and_towers(config: VideoLlavaConfig) -> None:
    if config.projector_depth != 2:
        raise ValueError(
            f"The number of the projector's layers is {config.projector_depth}; for transformers' format it must be 2."
        )
    video = _vision_config(config.video_config)
    for field, value in _vision_config(config.image_config).items():
        if video[field] != value:
            raise ValueError(
                f"{field} is {value} in the image tower and {video[field]} in the video tower; for transformers' "
                "format they must be equal."
            )


def _vision_config(tower: TowerConfig) -> dict[str, Any]:
    names = {field.name for field in fields(CLIPVisionConfig)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: getattr(tower, name) for name in sorted(names)}


def _select_strategy(config: VideoLlavaConfig) -> str:
    return "full" if config.image_keeps_cls else "default"


def _pad_stored(stored: StoredTensor, size: int) -> StoredTensor:
    return stored._replace(spec=_pad(stored.spec, size), read=lambda: _pad(stored.read(), size))


def _pad(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Add rows to embeddings or a head `[vocabulary, D]`; they are the mean row, so that none becomes an answer."""
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(size - len(weight), -1)])
