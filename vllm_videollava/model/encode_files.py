"""Encodes files of images and videos with a checkpoint's towers, without loading its language model."""

from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import nn
from vllm import EngineArgs, LLMEngine
from vllm.v1.executor import Executor

from vllm_videollava.decoding.file_kinds import HEAD_BYTES, find_medium
from vllm_videollava.media.io import MediaDecoder, MediaFileIO
from vllm_videollava.model.processing import VideoLlavaProcessor


class FileEncoder:
    """Loads towers and projector on the device that vLLM would use.

    Args:
        model: folder or repository of a checkpoint.
        dtype: the dtype to compute with, as for `vllm serve`.
        projected: whether to compute what the language model takes, `[tokens, D]`; otherwise, what the projector takes,
            `[tokens, tower's D]`.
    """

    def __init__(self, model: str, *, dtype: str = "auto", projected: bool = True) -> None:
        args = EngineArgs(model, dtype=dtype, mm_encoder_only=True, enforce_eager=True)
        config = args.create_engine_config()
        projected_size, tower_size = (shape[1] for shape in config.model_config.hf_config.embedding_shapes["image"])
        if not projected and projected_size == tower_size:
            raise ValueError("The tower is as wide as the language model, so a server could not tell the two apart.")
        # An engine in a process of its own takes no functions.
        self._engine = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)
        self._decoder = MediaDecoder(config.model_config.hf_config.pixel_format)
        self._projected = projected

    def encode(self, path: Path) -> torch.Tensor:
        """Return the embeddings of one file, `[tokens, D]`, in the model's dtype, on the CPU.

        Raises:
            MediaError: the file cannot be decoded, or goes beyond a setting.
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            modality = find_medium(file.read(HEAD_BYTES))
        prepared = self._decoder.decode(MediaFileIO(modality).load_file(path)).media
        (pixels,) = VideoLlavaProcessor()(**{f"{modality}s": [prepared]}).values()

        compute = partial(_compute, modality=modality, pixels=pixels, projected=self._projected)
        (embeddings,) = self._engine.apply_model(compute)
        return embeddings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.engine_core.shutdown()


def _compute(model: nn.Module, *, modality: str, pixels: torch.Tensor, projected: bool) -> torch.Tensor:
    embed = model.embed_pixels if projected else model.encode_pixels
    with torch.inference_mode():
        return embed(modality, pixels.to(next(model.parameters()).device))[0].cpu()


def save(embeddings: torch.Tensor, path: Path) -> None:
    """Write embeddings as vLLM reads them; an existing file is replaced only by a whole one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        torch.save(embeddings, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
