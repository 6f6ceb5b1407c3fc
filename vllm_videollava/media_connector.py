"""vLLM's connector for this model: fetches images and clips, and has them decoded in other processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllm import envs
from vllm.connections import MediaDownloadSizeExceededError
from vllm.exceptions import VLLMUnprocessableEntityError
from vllm.multimodal.media import MediaConnector, MediaWithBytes

from vllm_videollava.errors import MediaError
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
        with _refusals("image", image_url):
            return self.load_from_url(image_url, self._image_io(), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)

    async def fetch_image_async(self, image_url: str, **kwargs) -> MediaWithBytes:
        with _refusals("image", image_url):
            timeout = envs.VLLM_IMAGE_FETCH_TIMEOUT
            return await self.load_from_url_async(image_url, self._image_io(), fetch_timeout=timeout)

    def fetch_video(self, video_url: str, **kwargs) -> MediaWithBytes:
        with _refusals("video", video_url):
            return self.load_from_url(video_url, self._clip_io(), fetch_timeout=envs.VLLM_VIDEO_FETCH_TIMEOUT)

    async def fetch_video_async(self, video_url: str, **kwargs) -> MediaWithBytes:
        with _refusals("video", video_url):
            timeout = envs.VLLM_VIDEO_FETCH_TIMEOUT
            return await self.load_from_url_async(video_url, self._clip_io(), fetch_timeout=timeout)

    def _image_io(self) -> ImageIO:
        options = self.media_io_kwargs[NAME]
        return ImageIO(partial(prepare_image, size=options["image_size"], original=options["original"]))

    def _clip_io(self) -> ClipIO:
        options = self.media_io_kwargs[NAME]
        transform = partial(frame_pixels, size=options["video_size"], original=options["original"])
        return ClipIO(options["num_frames"], transform, self.media_io_kwargs.get("video", {}))


@contextmanager
def _refusals(kind: str, url: str) -> Iterator[None]:
    """Make one sentence, which names no path of this machine, of whatever is wrong with what a client sent."""
    try:
        yield
    except MediaError as error:
        raise MediaError(str(error), detail=error.detail, url=url) from error
    except VLLMUnprocessableEntityError as error:
        if not isinstance(error.__cause__, MediaDownloadSizeExceededError):
            raise
        raise MediaError(f"The {kind} cannot be fetched: {error.__cause__}", url=url) from error
    except NotImplementedError as error:
        raise MediaError(f"The {kind} is in a data URL that is not base64.", url=url) from error
    except (ValueError, RuntimeError, OSError) as error:
        if url[:5].lower() == "file:":
            sentence = f"The file of the {kind} cannot be read, or --allowed-local-media-path does not allow it."
            raise MediaError(sentence, detail=str(error), url=url) from error
        if isinstance(error, ValueError):
            raise MediaError(f"The {kind} cannot be fetched: {error}", url=url) from error
        raise
