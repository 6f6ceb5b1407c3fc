"""vLLM's connector for this model: fetches images and clips, and has them decoded in other processes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from vllm import envs
from vllm.multimodal.media import MediaConnector, MediaIO, MediaWithBytes

from vllm_videollava.data_urls import split_data_url
from vllm_videollava.fetch_errors import fetch_refusals
from vllm_videollava.media_io import ClipIO, ImageIO
from vllm_videollava.pixels import frame_pixels, prepare_image

NAME = "video_llava"
"""Of the connector, and of what media_io_kwargs has for it: `num_frames`, `image_size`, `video_size`, `original`."""


def make_connector(media_io_kwargs: Mapping[str, Mapping[str, Any]] | None = None, **kwargs) -> MediaConnector:
    """Make a connector for this model; for another model in the same process, vLLM's own."""
    made_for_us = media_io_kwargs is not None and NAME in media_io_kwargs
    return (VideoLlavaMediaConnector if made_for_us else MediaConnector)(media_io_kwargs, **kwargs)


class VideoLlavaMediaConnector(MediaConnector):
    """Fetches media as vLLM does, has them made into pixels, and refuses what cannot be used with one sentence.

    An image becomes a `PreparedImage`, a clip uint8 `[T, S, S, 3]`, S the
    size of its tower.

    Raises:
        MediaError: the medium cannot be read or decoded, or goes beyond a setting.
    """

    def fetch_image(self, image_url: str, **kwargs) -> MediaWithBytes:
        with fetch_refusals("image", image_url):
            return self.load_from_url(image_url, self._image_io(), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)

    async def fetch_image_async(self, image_url: str, **kwargs) -> MediaWithBytes:
        with fetch_refusals("image", image_url):
            timeout = envs.VLLM_IMAGE_FETCH_TIMEOUT
            return await self.load_from_url_async(image_url, self._image_io(), fetch_timeout=timeout)

    def fetch_video(self, video_url: str, **kwargs) -> MediaWithBytes:
        with fetch_refusals("video", video_url):
            return self.load_from_url(video_url, self._clip_io(), fetch_timeout=envs.VLLM_VIDEO_FETCH_TIMEOUT)

    async def fetch_video_async(self, video_url: str, **kwargs) -> MediaWithBytes:
        with fetch_refusals("video", video_url):
            timeout = envs.VLLM_VIDEO_FETCH_TIMEOUT
            return await self.load_from_url_async(video_url, self._clip_io(), fetch_timeout=timeout)

    def _load_data_url(self, url: str, media_io: MediaIO) -> MediaWithBytes:
        return media_io.load_base64(*split_data_url(url))

    def _image_io(self) -> ImageIO:
        options = self.media_io_kwargs[NAME]
        return ImageIO(partial(prepare_image, size=options["image_size"], original=options["original"]))

    def _clip_io(self) -> ClipIO:
        options = self.media_io_kwargs[NAME]
        transform = partial(frame_pixels, size=options["video_size"], original=options["original"])
        return ClipIO(options["num_frames"], transform, self.media_io_kwargs.get("video", {}))
