"""Lets vLLM capture the towers and the projector in CUDA graphs, one for each number of images or videos."""

from collections.abc import Hashable
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsEncoderCudaGraph
from vllm.model_executor.models.utils import scatter_output_slices
from vllm.v1.worker.encoder_cudagraph_defs import (
    EncoderCudaGraphCaptureInputs,
    EncoderCudaGraphConfig,
    EncoderCudaGraphPathConfig,
    EncoderCudaGraphReplayBuffers,
    EncoderItemSpec,
)

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.decoding.pixel_format import INPUT_NAMES

_BUFFER = "pixel_values"


class EncoderGraphs(SupportsEncoderCudaGraph):
    """vLLM's interface for encoders in CUDA graphs, which `--compilation-config '{"cudagraph_mm_encoder": true}'` uses.

    Images and videos take two paths, each named after its modality. A batch has
    one modality. Graphs are captured for 1, 2, 4, ... items and for the most that
    fit into the scheduler's batch. vLLM replays the smallest with enough room and
    fills the rest with zeros. Of a user's `encoder_cudagraph_token_budgets`, vLLM
    takes the largest in place of the scheduler's batch.
    """

    config: VideoLlavaConfig

    def embed_pixels(self, modality: str, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 images `[B, 3, S, S]` or videos `[V, T, 3, S, S]` to `[items, tokens, D]`."""
        raise NotImplementedError

    def encoded_modalities(self) -> list[str]:
        """Return the modalities whose tower this process has."""
        raise NotImplementedError

    def get_encoder_cudagraph_config(self) -> EncoderCudaGraphConfig:
        tokens = self.config.tokens_per_item
        modalities = self.encoded_modalities()
        return EncoderCudaGraphConfig(
            modalities=modalities,
            buffer_keys=[_BUFFER],
            out_hidden_size=self.config.text_config.hidden_size,
            max_frames_per_video=self.config.num_frames,
            paths={name: EncoderCudaGraphPathConfig(tokens[name], allow_zero_tokens=True) for name in modalities},
        )

    def get_input_modality(self, mm_kwargs: dict[str, Any]) -> str:
        return next(modality for modality, name in INPUT_NAMES.items() if name in mm_kwargs)

    def get_max_frames_per_video(self) -> int:
        return self.config.num_frames

    def get_encoder_cudagraph_budget_range(self, vllm_config: VllmConfig) -> tuple[int, int]:
        """Return the tokens of the smallest and of the largest batch that is captured.

        A video may have more tokens than the scheduler's batch; a graph for one is captured even then.
        """
        tokens = [self.config.tokens_per_item[modality] for modality in self.encoded_modalities()]
        return min(tokens), max(*tokens, vllm_config.scheduler_config.max_num_batched_tokens)

    def get_encoder_cudagraph_item_specs(self, mm_kwargs: dict[str, Any]) -> list[EncoderItemSpec]:
        modality = self.get_input_modality(mm_kwargs)
        tokens = self.config.tokens_per_item[modality]
        return [EncoderItemSpec(tokens, tokens, {modality: tokens})] * len(mm_kwargs[INPUT_NAMES[modality]])

    def select_encoder_cudagraph_items(self, mm_kwargs: dict[str, Any], indices: list[int]) -> dict[str, Any]:
        name = INPUT_NAMES[self.get_input_modality(mm_kwargs)]
        pixels = mm_kwargs[name]
        # Indexing with a list would make the CPU wait for the GPU.
        return {name: torch.stack([pixels[index] for index in indices]) if indices else pixels[:0]}

    def prepare_encoder_cudagraph_capture_inputs(
        self,
        token_budget: int,
        max_batch_size: int,
        max_frames_per_batch: int,
        device: torch.device,
        dtype: torch.dtype,
        path: str = "default",
        # vLLM 0.29 does not pass it.
        axis_keys: tuple[Hashable, ...] | None = None,
    ) -> EncoderCudaGraphCaptureInputs:
        num_items = min(token_budget // self.config.tokens_per_item[path], max_batch_size)
        shape = self.config.pixel_format.input_shapes[path]
        pixels = torch.zeros(num_items, *shape, dtype=torch.uint8, device=device)
        return EncoderCudaGraphCaptureInputs({_BUFFER: pixels})

    def prepare_encoder_cudagraph_replay_buffers(
        self, mm_kwargs: dict[str, Any], max_batch_size: int, max_frames_per_batch: int, path: str = "default"
    ) -> EncoderCudaGraphReplayBuffers:
        return EncoderCudaGraphReplayBuffers({_BUFFER: mm_kwargs[INPUT_NAMES[path]]})

    def encoder_cudagraph_forward(self, inputs: dict[str, torch.Tensor], path: str = "default") -> torch.Tensor:
        return self.embed_pixels(path, inputs[_BUFFER]).flatten(0, 1)

    def encoder_eager_forward(self, mm_kwargs: dict[str, Any], path: str = "default") -> torch.Tensor:
        return self.embed_pixels(path, mm_kwargs[INPUT_NAMES[path]]).flatten(0, 1)

    def postprocess_encoder_output(
        self,
        outputs: dict[str, torch.Tensor],
        indices: list[int],
        per_item_out_tokens: list[int],
        dest: dict[int, torch.Tensor] | list[torch.Tensor | None],
        clone: bool = False,
        batch_mm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        (embeddings,) = outputs.values()
        scatter_output_slices(embeddings, indices, per_item_out_tokens, dest, clone)
