"""Embeddings that take the place of images and videos: their shapes, their check, and their reading from base64."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pybase64
import torch
from vllm.config.multimodal import MultiModalConfig
from vllm.multimodal.parse import MultiModalDataParser

from vllm_videollava.decoding.errors import MediaError

EMBEDDING_NAMES = {"image": "image_embeds", "video": "video_embeds"}
"""The names of the model's inputs, by modality."""

Shapes = Mapping[str, Sequence[tuple[int, int]]]
"""The shapes that the embeddings of one image or video may have, by modality."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def accepted_shapes(shapes: Shapes, mm_config: MultiModalConfig) -> Shapes:
    """Return what an engine accepts of the shapes `[projected, of a tower]`; without its flag, this is nothing."""
    if not mm_config.enable_mm_embeds:
        return {}
    # vLLM loads no projector if it is to load no towers.
    has_projector = any(mm_config.get_limit_per_prompt(modality) for modality in shapes)
    return {modality: both if has_projector else both[:1] for modality, both in shapes.items()}


def split_embeddings(data: Any) -> list[torch.Tensor] | None:
    """Return the embeddings in the data of one modality, or None if these are images or videos.

    As in vLLM, embeddings are a tensor `[items, tokens, D]` or a list of tensors `[tokens, D]`, of floats.
    """
    if not MultiModalDataParser.is_embeddings(data):
        return None
    are_floats = all(isinstance(item, torch.Tensor) and item.is_floating_point() for item in data)
    return list(data) if are_floats else None


def check_embeddings(modality: str, embeddings: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
    """Check the embeddings of one image or video.

    Raises:
        MediaError: shape or dtype is not one that the model takes, or a value is not finite.
    """
    known = " or ".join(str(list(shape)) for shape in shapes)
    _check_dtype(modality, embeddings)
    if tuple(embeddings.shape) not in shapes:
        raise MediaError(f"The embeddings of the {modality} have shape {list(embeddings.shape)}; it must be {known}.")
    if not embeddings.isfinite().all():
        raise MediaError(f"The embeddings of the {modality} have infinite or NaN values.")


def _check_dtype(modality: str, embeddings: torch.Tensor) -> None:
    if embeddings.dtype not in _DTYPES:
        dtype, known = (
            ", ".join(str(one).removeprefix("torch.") for one in some) for some in ([embeddings.dtype], _DTYPES)
        )
        raise MediaError(f"The embeddings of the {modality} have dtype {dtype}; it must be one of {known}.")


def read_embeddings(modality: str, data: str) -> torch.Tensor:
    """Read the base64 of a tensor `[tokens, D]`, as `torch.save` or `numpy.save` writes it.

    Raises:
        MediaError: it cannot be read, has another number of axes, or would take more memory than was sent.
    """
    try:
        content = pybase64.b64decode(data, validate=True)
        embeddings = _load(content)
    except Exception as error:
        # The libraries that read it raise nearly anything for damaged bytes.
        raise MediaError(
            f"The embeddings of the {modality} cannot be read; send the base64 of a tensor saved by torch.save or "
            "numpy.save.",
            detail=str(error),
        ) from error
    is_dense = isinstance(embeddings, torch.Tensor) and embeddings.layout == torch.strided
    # A tensor may repeat its values without having them more than once.
    if not is_dense or embeddings.ndim != 2 or embeddings.nbytes > len(content):
        raise MediaError(
            f"The embeddings of the {modality} are no dense tensor of two axes, which are tokens and features."
        )
    # vLLM may convert several tensors to one dtype.
    _check_dtype(modality, embeddings)
    return embeddings


def _load(content: bytes) -> Any:
    file = io.BytesIO(content)
    if content.startswith(b"\x93NUMPY"):
        return torch.from_numpy(np.load(file))
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("It is compressed.")
    return torch.load(file, weights_only=True, map_location="cpu")
