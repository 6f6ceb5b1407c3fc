"""Video-LLaVA for vLLM: two LanguageBind towers, a projector, and LLaMA."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
    SupportsQuant,
)
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.model_executor.models.vision import is_vit_use_data_parallel, run_dp_sharded_vision_model
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors
from vllm.utils.tensor_schema import TensorSchema, TensorShape

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.checkpoints.tower_config import TowerConfig
from vllm_videollava.compat import skip_rows_without_adapter
from vllm_videollava.model.encoder_graphs import EncoderGraphs
from vllm_videollava.model.files import CheckpointFiles
from vllm_videollava.model.processing import (
    VideoLlavaDummyInputsBuilder,
    VideoLlavaMultiModalProcessor,
    VideoLlavaProcessingInfo,
)
from vllm_videollava.model.projector import MultiModalProjector
from vllm_videollava.model.tower import LanguageBindTower
from vllm_videollava.model.weights import StrictWeightsLoader
from vllm_videollava.tensors.merging import merge
from vllm_videollava.tensors.names import TENSOR_NAMES
from vllm_videollava.text.placeholders import sentinel


class VideoLlavaImageInputs(TensorSchema):
    """Images.

    Dimensions:
        - b: images
        - s: image size
    """

    type: Literal["images"] = "images"
    pixel_values: Annotated[torch.Tensor, TensorShape("b", 3, "s", "s")]


class VideoLlavaVideoInputs(TensorSchema):
    """Videos.

    Dimensions:
        - v: videos
        - t: frames of a video
        - s: image size
    """

    type: Literal["videos"] = "videos"
    pixel_values: Annotated[torch.Tensor, TensorShape("v", "t", 3, "s", "s")]


@MULTIMODAL_REGISTRY.register_processor(
    VideoLlavaMultiModalProcessor,
    info=VideoLlavaProcessingInfo,
    dummy_inputs=VideoLlavaDummyInputsBuilder,
)
class VideoLlavaForConditionalGeneration(
    nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA, SupportsQuant, EncoderGraphs
):
    supports_encoder_tp_data = True
    # Pixels are normalised by the patch embedding.
    supports_mm_device_do_normalize = True
    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
    hf_to_vllm_mapper = TENSOR_NAMES

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        # Templates that take only strings need a string here; the tokenizer turns it into a placeholder.
        return sentinel(modality)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: VideoLlavaConfig = vllm_config.model_config.hf_config
        self.config = config
        self._shards_items = is_vit_use_data_parallel()

        with self._mark_tower_model(vllm_config, "image"):
            self.image_tower = self._make_tower(config.image_config, vllm_config, prefix, "image_tower")
        with self._mark_tower_model(vllm_config, "video"):
            self.video_tower = self._make_tower(config.video_config, vllm_config, prefix, "video_tower")
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            self.multi_modal_projector = MultiModalProjector(
                config, vllm_config.quant_config, maybe_prefix(prefix, "multi_modal_projector")
            )
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["LlamaForCausalLM"],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        if vllm_config.lora_config and current_platform.is_cpu():
            skip_rows_without_adapter()
        self._files = CheckpointFiles(vllm_config.model_config)
        self._weights_loader = StrictWeightsLoader(self, config)
        # Weights that are drawn at random may be replaced part by part.
        self._loads_whole = vllm_config.load_config.load_format != "dummy"

    def _make_tower(self, config: TowerConfig, vllm_config: VllmConfig, prefix: str, name: str) -> LanguageBindTower:
        num_layers = self.config.num_computed_layers(config)
        return LanguageBindTower(config, vllm_config.quant_config, num_layers, maybe_prefix(prefix, name))

    def embed_multimodal(
        self,
        pixel_values_images: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_embeds: Sequence[torch.Tensor] = (),
        video_embeds: Sequence[torch.Tensor] = (),
    ) -> MultiModalEmbeddings:
        """Embed images, uint8 `[B, 3, S, S]`, and videos, uint8 `[V, T, 3, S, S]`.

        Each of `image_embeds` and `video_embeds` is already embedded, `[tokens, D]`, or is what a tower makes of an
        image or a video, `[tokens, tower's D]`.

        Returns:
            One tensor `[tokens, D]` for each image, then one for each video.
        """
        embeddings: list[torch.Tensor] = []
        if pixel_values_images is not None:
            images = VideoLlavaImageInputs(pixel_values=pixel_values_images)
            embeddings += self._embed("image", images["pixel_values"])
        if pixel_values_videos is not None:
            videos = VideoLlavaVideoInputs(pixel_values=pixel_values_videos)
            embeddings += self._embed("video", videos["pixel_values"])
        return [*embeddings, *map(self._project, (*image_embeds, *video_embeds))]

    def _embed(self, modality: str, pixels: torch.Tensor) -> torch.Tensor:
        """Embed images or videos, each on one rank if vLLM's flag `--mm-encoder-tp-mode` says so."""
        if self._shards_items:
            return run_dp_sharded_vision_model(pixels, partial(self.embed_pixels, modality))
        return self.embed_pixels(modality, pixels)

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        if features.shape[-1] == self.config.text_config.hidden_size:
            return features
        return self.multi_modal_projector(features)

    def embed_pixels(self, modality: str, pixels: torch.Tensor) -> torch.Tensor:
        return self.multi_modal_projector(self.encode_pixels(modality, pixels))

    def encode_pixels(self, modality: str, pixels: torch.Tensor) -> torch.Tensor:
        """Return what a tower makes of images or videos, and the projector is given: `[items, tokens, tower's D]`."""
        if modality == "video":
            features = self.video_tower(pixels.flatten(0, 1))  # [V * T, 1 + N, D]
            return features.unflatten(0, pixels.shape[:2]).flatten(1, 2)
        features = self.image_tower(pixels)  # [B, 1 + N, D]
        # Kernels of quantised layers view their input as rows.
        return features if self.config.image_keeps_cls else features[:, 1:].contiguous()

    def encoded_modalities(self) -> list[str]:
        return [modality for modality in ("image", "video") if self._computes(f"{modality}_tower")]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint of either format, or a part of one into a model that has been loaded before.

        Raises:
            ValueError: a tensor is unexpected or has a wrong shape, or one of a whole checkpoint is missing.
        """
        if fine_tune := self._files.fine_tune:
            absent = [f"{tower}." for tower in ("image_tower", "video_tower") if not self._computes(tower)]
            weights = merge(weights, fine_tune.adapter, tuple(absent))
        filled = self._weights_loader.load(weights)
        if self._loads_whole:
            self._weights_loader.check_complete()
        self._loads_whole = False
        return filled

    @property
    def allow_patterns_overrides(self) -> list[str] | None:
        """Return what vLLM's loader is to read first, or None if it may choose."""
        return self._files.first_patterns

    @property
    def secondary_weights(self) -> Iterator[DefaultModelLoader.Source]:
        """Return what vLLM's loader is to read then.

        The loader reads this property when it has read the first files of a
        whole checkpoint.
        """
        self._loads_whole = True
        return self._files.other_sources(self._lacks_tower)

    def _lacks_tower(self, name: str) -> bool:
        return self._computes(name) and not self._weights_loader.has_seen(f"{name}.")

    def _computes(self, tower: str) -> bool:
        """Return whether this rank computes a tower, `image_tower` or `video_tower`."""
        return isinstance(getattr(self, tower), LanguageBindTower)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector="multi_modal_projector",
            tower_model=["image_tower", "video_tower"],
        )
