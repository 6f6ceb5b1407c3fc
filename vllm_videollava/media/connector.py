"""The media connector that vLLM uses for this model: fetches images and videos and has worker processes decode them."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from vllm import envs
from vllm.multimodal.media import MediaConnector, MediaWithBytes

from vllm_videollava.decoding.data_urls import split_data_url
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.decoding.pool import DecoderUnavailableError
from vllm_videollava.media.embeddings import read_embeddings
from vllm_videollava.media.fetch_errors import fetch_refusals
from vllm_videollava.media.io import MediaDecoder, MediaFile, MediaFileIO
from vllm_videollava.media.options import background_colour
from vllm_videollava.media.temporary_errors import DecodeError

NAME = "video_llava"
"""Name of the connector, for VLLM_MEDIA_CONNECTOR."""

# Not passed in media_io_kwargs, because requests can change those.
_pixel_format: ContextVar[PixelFormat | None] = ContextVar("pixel_format", default=None)
_engines: dict[int, tuple[Mapping, PixelFormat]] = {}
"""The engines of this model in this process: each one's own `media_io_kwargs`, by identity, and its pixel format."""


def add_engine(media_io_kwargs: Mapping, pixel_format: PixelFormat) -> None:
    """Give a pixel format to the connectors that vLLM makes from an engine's own `media_io_kwargs`.

    vLLM makes some of these outside of `media_become`.
    """
    _engines[id(media_io_kwargs)] = media_io_kwargs, pixel_format


def remove_engine(media_io_kwargs: Mapping) -> None:
    _engines.pop(id(media_io_kwargs), None)


@contextmanager
def media_become(pixel_format: PixelFormat) -> Iterator[None]:
    """Give a pixel format to the connectors that vLLM makes within the block or in tasks started there."""
    token = _pixel_format.set(pixel_format)
    try:
        yield
    finally:
        _pixel_format.reset(token)


def make_connector(media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None, **kwargs) -> MediaConnector:
    """Make a connector for this model, or vLLM's own connector for another model in the same process."""
    _, engines_format = _engines.get(id(media_io_kwargs), (None, None))
    if (pixel_format := _pixel_format.get() or engines_format) is None:
        return MediaConnector(media_io_kwargs, **kwargs)
    return VideoLlavaMediaConnector(pixel_format, media_io_kwargs, **kwargs)


class VideoLlavaMediaConnector(MediaConnector):
    """Fetches media as vLLM does and has them decoded to pixels; an error about them is one sentence.

    Waiting for a decoder blocks none of vLLM's threads.

    Raises:
        MediaError: the medium cannot be fetched or decoded, or goes beyond a setting.
        TemporaryError: the medium cannot be fetched or decoded now, but perhaps later.
    """

    def __init__(
        self, pixel_format: PixelFormat, media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None, **kwargs
    ) -> None:
        super().__init__(media_io_kwargs, **kwargs)
        self._decoder = MediaDecoder(pixel_format, background_colour(media_io_kwargs))

    def fetch_image(self, image_url: str, **kwargs) -> MediaWithBytes:
        return self._fetch("image", image_url, envs.VLLM_IMAGE_FETCH_TIMEOUT)

    async def fetch_image_async(self, image_url: str, **kwargs) -> MediaWithBytes:
        return await self._fetch_async("image", image_url, envs.VLLM_IMAGE_FETCH_TIMEOUT)

    def fetch_video(self, video_url: str, **kwargs) -> MediaWithBytes:
        return self._fetch("video", video_url, envs.VLLM_VIDEO_FETCH_TIMEOUT)

    async def fetch_video_async(self, video_url: str, **kwargs) -> MediaWithBytes:
        return await self._fetch_async("video", video_url, envs.VLLM_VIDEO_FETCH_TIMEOUT)

    def fetch_image_embedding(self, data: str) -> torch.Tensor:
        return _read_embeddings("image", data)

    async def fetch_image_embedding_async(self, data: str) -> torch.Tensor:
        return await asyncio.to_thread(_read_embeddings, "image", data)

    def fetch_video_embedding(self, data: str) -> torch.Tensor:
        return _read_embeddings("video", data)

    async def fetch_video_embedding_async(self, data: str) -> torch.Tensor:
        return await asyncio.to_thread(_read_embeddings, "video", data)

    def _fetch(self, kind: str, url: str, timeout: int) -> MediaWithBytes:
        with _naming(url):
            with fetch_refusals(kind, url):
                if _is_data_url(url):
                    file = _read_data_url(kind, url)
                else:
                    file = self.load_from_url(url.strip(), MediaFileIO(kind), fetch_timeout=timeout)
            return self._decoder.decode(file)

    async def _fetch_async(self, kind: str, url: str, timeout: int) -> MediaWithBytes:
        with _naming(url):
            with fetch_refusals(kind, url):
                if _is_data_url(url):
                    file = await asyncio.to_thread(_read_data_url, kind, url)
                else:
                    file = await self.load_from_url_async(url.strip(), MediaFileIO(kind), fetch_timeout=timeout)
            return await self._decoder.decode_async(file)


def _read_embeddings(modality: str, data: str) -> torch.Tensor:
    with _naming(data):
        return read_embeddings(modality, data)


def _is_data_url(url: str) -> bool:
    return url[:16].lstrip()[:5].lower() == "data:"


def _read_data_url(kind: str, url: str) -> MediaFile:
    media_type, data = split_data_url(url)
    return MediaFileIO(kind).load_base64(media_type, data)


@contextmanager
def _naming(url: str) -> Iterator[None]:
    """Store the client's URL in errors, so that they can name the medium's place in the request."""
    try:
        yield
    except MediaError as error:
        raise MediaError(str(error), detail=error.detail, url=url) from error
    except DecoderUnavailableError as error:
        raise DecodeError(str(error), url=url) from error
