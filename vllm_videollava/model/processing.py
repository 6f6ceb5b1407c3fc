"""Turns a request's prompt and pixels into the model's inputs, through vLLM's multimodal interfaces."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import EmbeddingItems, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.decoding.pixel_format import INPUT_NAMES
from vllm_videollava.decoding.pixels import PreparedImage, PreparedVideo
from vllm_videollava.media.embeddings import EMBEDDING_NAMES, embedding_format
from vllm_videollava.media.options import background_colour, check_mm_processor_kwargs
from vllm_videollava.media.python_media import VideoLlavaDataParser
from vllm_videollava.text.conversation import check_placeholders, collapse_placeholders
from vllm_videollava.text.placeholders import PLACEHOLDERS
from vllm_videollava.text.unicode import check_text


class VideoLlavaProcessor:
    """Selects and batches prepared pixels; takes the place of a transformers processor."""

    def __call__(
        self,
        images: Sequence[PreparedImage] = (),
        videos: Sequence[PreparedVideo] = (),
        image_aspect_ratio: str | None = None,
        return_tensors: str | None = None,
        do_rescale: bool = False,
        do_normalize: bool = False,
    ) -> BatchFeature:
        """Select the padded or the cropped images, and put channels first.

        vLLM passes `do_rescale` and `do_normalize` as false, because the model
        does both.

        Returns:
            `pixel_values_images`, uint8 `[B, 3, S, S]`, if there are images,
            and `pixel_values_videos`, uint8 `[V, T, 3, S, S]`, if there are
            videos.
        """
        features = {}
        if images:
            pad = int(image_aspect_ratio == "pad")
            features[INPUT_NAMES["image"]] = _channels_first([image[pad] for image in images])
        if videos:
            features[INPUT_NAMES["video"]] = _channels_first(videos)
        return BatchFeature(features)


def _channels_first(pixels: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pixels)).movedim(-1, -3).contiguous()


class VideoLlavaProcessingInfo(BaseProcessingInfo):
    def get_hf_config(self) -> VideoLlavaConfig:
        return self.ctx.get_hf_config(VideoLlavaConfig)

    def get_hf_processor(self, **kwargs: object) -> VideoLlavaProcessor:
        return VideoLlavaProcessor()

    def get_data_parser(self) -> VideoLlavaDataParser:
        background = background_colour(self.ctx.get_mm_config().media_io_kwargs)
        return VideoLlavaDataParser(
            self.get_hf_config().pixel_format, background, embedding_format(self.ctx.model_config)
        )

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, "video": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return self.get_hf_config().tokens_per_item


class VideoLlavaDummyInputsBuilder(BaseDummyInputsBuilder[VideoLlavaProcessingInfo]):
    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "".join(PLACEHOLDERS[modality] * count for modality, count in mm_counts.items())

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> MultiModalDataDict:
        config = self.info.get_hf_config()
        image_size, video_size = config.image_config.image_size, config.video_config.image_size
        return {
            "image": self._get_dummy_images(
                width=image_size,
                height=image_size,
                num_images=mm_counts.get("image", 0),
                overrides=mm_options.get("image"),
            ),
            "video": self._get_dummy_videos(
                width=video_size,
                height=video_size,
                num_frames=config.num_frames,
                num_videos=mm_counts.get("video", 0),
                overrides=mm_options.get("video"),
            ),
        }


def _with_own_ids(inputs: ProcessorInputs) -> ProcessorInputs:
    """Prefix the ids that clients give to media, so that they differ from hashes, and images' ids from videos' ids.

    vLLM's caches and the engine know an item by its id alone: a video with the
    same id as an image would get the image's pixels.

    Raises:
        ValueError: an id cannot be encoded.
    """
    ids = {
        modality: [_own_id(modality, name) for name in names]
        for modality, names in (inputs.mm_uuid_items or {}).items()
        if names is not None
    }
    return dataclasses.replace(inputs, mm_uuid_items=ids)


def _own_id(modality: str, name: str | None) -> str | None:
    if name is None:
        return None
    check_text(f"The {modality}'s uuid", str(name))
    return f"{modality}-{name}"


class VideoLlavaMultiModalProcessor(BaseMultiModalProcessor[VideoLlavaProcessingInfo]):
    def apply(self, inputs, timing_ctx):
        """Check a request, then process it.

        Raises:
            ValueError: placeholders and media do not match, or an option is
                not supported. It is raised before any media are touched,
                because vLLM adds the data itself to later errors.
        """
        check_mm_processor_kwargs(inputs.hf_processor_mm_kwargs)
        self._check_prepared(inputs.mm_data_items)
        return super().apply(_with_own_ids(self._with_single_placeholders(inputs)), timing_ctx)

    def _check_prepared(self, items: MultiModalDataItems) -> None:
        pixel_format = self.info.get_hf_config().pixel_format
        shapes = {"image": pixel_format.image_shape, "video": pixel_format.clip_shape}
        for modality, shape in shapes.items():
            if modality not in items or isinstance(items[modality], EmbeddingItems):
                continue
            for pixels in items[modality].get_all():
                if pixels is not None and (pixels.shape != shape or pixels.dtype != np.uint8):
                    found = f"{pixels.dtype} {list(pixels.shape)}"
                    raise ValueError(f"A prepared {modality} is {found}; it must be uint8 {list(shape)}.")

    def _with_single_placeholders(self, inputs):
        placeholder_ids = self.info.get_tokenizer().placeholder_ids
        counts, tokens_per_item = inputs.mm_data_items.get_all_counts(), self.info.get_hf_config().tokens_per_item
        prompt = collapse_placeholders(inputs.prompt, placeholder_ids, counts, tokens_per_item)
        check_placeholders(prompt, placeholder_ids, counts)
        return dataclasses.replace(inputs, prompt=prompt)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        names = (*INPUT_NAMES.items(), *EMBEDDING_NAMES.items())
        return {name: MultiModalFieldConfig.batched(modality) for modality, name in names}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        counts = self.info.get_hf_config().tokens_per_item
        return [
            PromptReplacement(modality=modality, target=[token_id], replacement=[token_id] * counts[modality])
            for modality, token_id in self.info.get_tokenizer().placeholder_ids.items()
        ]
