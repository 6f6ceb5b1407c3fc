"""Embeddings that take the place of images and videos: their form, their check, and their reading from base64."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import pybase64
import torch
from vllm.config import ModelConfig
from vllm.multimodal.parse import MultiModalDataParser

from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.limits import check_base64_size
from vllm_videollava.decoding.settings import read_settings
from vllm_videollava.media.saved_tensors import load_tensor

EMBEDDING_NAMES = {"image": "image_embeds", "video": "video_embeds"}
"""The names of the model's inputs, by modality."""


class EmbeddingFormat(NamedTuple):
    """The form of the embeddings that an engine takes in place of images and videos.

    Attributes:
        shapes: the shapes that those of one image or video may have, by modality.
        dtype: the dtype that they are converted to, which is the model's.
    """

    shapes: Mapping[str, Sequence[tuple[int, int]]]
    dtype: torch.dtype


def embedding_format(model_config: ModelConfig) -> EmbeddingFormat | None:
    """Return the form of the embeddings that an engine takes, or None if it takes none."""
    mm_config = model_config.multimodal_config
    if not mm_config.enable_mm_embeds:
        return None
    shapes = model_config.hf_config.embedding_shapes
    # vLLM loads no projector if it is to load no towers.
    if not any(mm_config.get_limit_per_prompt(modality) for modality in shapes):
        shapes = {modality: projected_or_not[:1] for modality, projected_or_not in shapes.items()}
    return EmbeddingFormat(shapes, model_config.dtype)


_format: ContextVar[EmbeddingFormat | None] = ContextVar("embedding_format", default=None)


@contextmanager
def embeddings_become(form: EmbeddingFormat | None) -> Iterator[None]:
    """Have `read_embeddings` read this form within the block or in tasks started there."""
    token = _format.set(form)
    try:
        yield
    finally:
        _format.reset(token)


def split_embeddings(data: Any) -> list[torch.Tensor] | None:
    """Return the embeddings in the data of one modality, or None if these are images or videos.

    As in vLLM, embeddings are a tensor `[items, tokens, D]` or a list of tensors `[tokens, D]`, of floats.
    """
    if not MultiModalDataParser.is_embeddings(data):
        return None
    are_floats = all(isinstance(item, torch.Tensor) and item.is_floating_point() for item in data)
    return list(data) if are_floats else None


def convert_embeddings(modality: str, embeddings: torch.Tensor, form: EmbeddingFormat) -> torch.Tensor:
    """Check the embeddings of one image or video, and convert them to the model's dtype.

    vLLM stacks those of several requests, and converts all to the dtype of the first.

    Raises:
        MediaError: the shape is not one that the model takes, or a value is not finite in the model's dtype.
    """
    if tuple(embeddings.shape) not in form.shapes[modality]:
        known = " or ".join(str(list(shape)) for shape in form.shapes[modality])
        raise MediaError(f"The embeddings of the {modality} have shape {list(embeddings.shape)}; it must be {known}.")
    converted = embeddings.detach().to(form.dtype).contiguous()
    if not converted.isfinite().all():
        dtype = str(form.dtype).removeprefix("torch.")
        raise MediaError(f"The embeddings of the {modality} have values that are not finite in {dtype}.")
    return converted


def read_embeddings(modality: str, data: str) -> torch.Tensor:
    """Read the base64 of a tensor `[tokens, D]`, as `torch.save` or `numpy.save` writes it.

    Raises:
        MediaError: it cannot be read, or is not of the form that `embeddings_become` has given.
    """
    form = _format.get()
    if form is None:
        raise MediaError(f"The server takes no embeddings; send the {modality} itself.")
    check_base64_size(modality, len(data), read_settings())
    try:
        embeddings = load_tensor(pybase64.b64decode(data, validate=True))
    except Exception as error:
        # The libraries that read it raise nearly anything for damaged bytes.
        raise MediaError(
            f"The embeddings of the {modality} cannot be read; send the base64 of a dense tensor of floats, saved by "
            "torch.save or numpy.save.",
            detail=str(error),
        ) from error
    if not embeddings.is_floating_point():
        dtype = str(embeddings.dtype).removeprefix("torch.")
        raise MediaError(f"The embeddings of the {modality} have dtype {dtype}; they must be floats.")
    return convert_embeddings(modality, embeddings, form)
