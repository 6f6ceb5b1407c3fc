"""vLLM's connector for this model: fetches images and clips, and has them decoded in other processes."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
from cachetools import LRUCache
from vllm import envs as vllm_envs
from vllm.connections import MediaDownloadSizeExceededError
from vllm.exceptions import VLLMUnprocessableEntityError
from vllm.multimodal.media import MediaConnector, MediaIO, MediaWithBytes

from vllm_videollava.decode_pool import shared_pool
from vllm_videollava.envs import Settings, read_settings, variable
from vllm_videollava.errors import MediaError
from vllm_videollava.frames import sample_indices
from vllm_videollava.pixels import PreparedImage, frame_pixels, prepare_image

NAME = "video_llava"
"""Of the connector, and of what media_io_kwargs has for it; requests to other models have nothing there."""
DECODE_CLIP = "vllm_videollava.clip_decoder:decode_frames"
DECODE_IMAGE = "vllm_videollava.image_decoder:decode_image"


class VideoLlavaMediaConnector(MediaConnector):
    """Fetches media as vLLM does, has them made into pixels, and refuses what cannot be used with one sentence.

    An image becomes a `PreparedImage`, a clip uint8 `[T, S, S, 3]`, S the
    size of its tower. `engine_defaults` says how.

    Raises:
        MediaError: the medium cannot be read or decoded, or goes beyond a setting.
    """

    def fetch_image(self, image_url: str, **kwargs):
        if NAME not in self.media_io_kwargs:
            return super().fetch_image(image_url, **kwargs)
        with _refusals("image", image_url):
            timeout = vllm_envs.VLLM_IMAGE_FETCH_TIMEOUT
            return self.load_from_url(image_url, self._image_io(), fetch_timeout=timeout)

    async def fetch_image_async(self, image_url: str, **kwargs):
        if NAME not in self.media_io_kwargs:
            return await super().fetch_image_async(image_url, **kwargs)
        with _refusals("image", image_url):
            timeout = vllm_envs.VLLM_IMAGE_FETCH_TIMEOUT
            return await self.load_from_url_async(image_url, self._image_io(), fetch_timeout=timeout)

    def fetch_video(self, video_url: str, **kwargs):
        if NAME not in self.media_io_kwargs:
            return super().fetch_video(video_url, **kwargs)
        with _refusals("video", video_url):
            timeout = vllm_envs.VLLM_VIDEO_FETCH_TIMEOUT
            return self.load_from_url(video_url, self._clip_io(), fetch_timeout=timeout)

    async def fetch_video_async(self, video_url: str, **kwargs):
        if NAME not in self.media_io_kwargs:
            return await super().fetch_video_async(video_url, **kwargs)
        with _refusals("video", video_url):
            timeout = vllm_envs.VLLM_VIDEO_FETCH_TIMEOUT
            return await self.load_from_url_async(video_url, self._clip_io(), fetch_timeout=timeout)

    def _image_io(self) -> "ImageIO":
        options = self.media_io_kwargs[NAME]
        transform = partial(prepare_image, size=options["image_size"], original=options["original"])
        return ImageIO(transform)

    def _clip_io(self) -> "ClipIO":
        options = self.media_io_kwargs[NAME]
        transform = partial(frame_pixels, size=options["video_size"], original=options["original"])
        return ClipIO(options["num_frames"], transform, self.media_io_kwargs.get("video", {}))


class _BoundedIO(MediaIO[MediaWithBytes]):
    """Reads no more bytes than VIDEO_LLAVA_MAX_MEDIA_MB allows."""

    kind: str

    def __init__(self) -> None:
        self.settings = read_settings()

    def get_max_bytes(self) -> int:
        return self.settings.max_media_mb << 20

    def load_base64(self, media_type: str, data: str) -> MediaWithBytes:
        self.check_size(len(data) * 3 // 4)
        return self.load_bytes(self.decode_base64(data))

    def load_file(self, filepath: Path) -> MediaWithBytes:
        if not filepath.is_file():
            raise FileNotFoundError(filepath)
        self.check_size(filepath.stat().st_size)
        return self.load_bytes(filepath.read_bytes())

    def decode_base64(self, data: str) -> bytes:
        try:
            return pybase64.b64decode(data, validate=True)
        except ValueError as error:
            raise MediaError(f"The {self.kind} is no valid base64.") from error

    def check_size(self, num_bytes: int) -> None:
        if not num_bytes:
            raise MediaError(f"The {self.kind} is empty.")
        if num_bytes > self.get_max_bytes():
            raise too_large(self.kind, f"has {num_bytes} bytes", self.settings)


def too_large(kind: str, what: str, settings: Settings) -> MediaError:
    limit = f"{variable('max_media_mb')} is {settings.max_media_mb}, which allows {settings.max_media_mb << 20}"
    return MediaError(f"The {kind} {what}; {limit}.")


class ImageIO(_BoundedIO):
    """From the bytes of an image file to its pixels.

    Args:
        transform: `prepare_image` with its arguments.
    """

    kind = "image"

    def __init__(self, transform: Callable[..., PreparedImage]) -> None:
        super().__init__()
        self._transform = transform

    def load_bytes(self, data: bytes) -> MediaWithBytes[PreparedImage]:
        self.check_size(len(data))
        return MediaWithBytes(decode_image(self.kind, data, self._transform).view(PreparedImage), data)


def decode_image(kind: str, data: bytes, transform: Callable[..., np.ndarray]) -> np.ndarray:
    max_pixels = vllm_envs.VLLM_MAX_IMAGE_PIXELS
    return shared_pool().run(kind, DECODE_IMAGE, data, transform=transform, max_pixels=max_pixels)


class ClipIO(_BoundedIO):
    """From the bytes of a clip to the pixels of the frames that the model sees.

    Args:
        transform: `frame_pixels` with its arguments.
        asked: what a request or a flag asks for.
    """

    kind = "video"

    def __init__(self, num_frames: int, transform: Callable[..., np.ndarray], asked: Mapping[str, Any]) -> None:
        super().__init__()
        self._num_frames = num_frames
        self._transform = transform
        asked = {key: value for key, value in asked.items() if key in ("num_frames", "fps")}
        if asked not in ({}, {"num_frames": num_frames}, {"num_frames": -1}):
            wishes = " and ".join(f"{key} {value}" for key, value in asked.items())
            raise MediaError(f"{wishes} of a video was asked for, but this model takes {num_frames} frames.")

    def load_bytes(self, data: bytes) -> MediaWithBytes[np.ndarray]:
        self.check_size(len(data))
        key = blake2b(data).digest(), self._num_frames, *self._transform.keywords.values()
        return MediaWithBytes(_decoded_clips().get(key, partial(self._decode, data)), data)

    def load_base64(self, media_type: str, data: str) -> MediaWithBytes[np.ndarray]:
        if media_type.lower() != "video/jpeg":
            return super().load_base64(media_type, data)
        self.check_size(len(data) * 3 // 4)
        pictures = data.split(",")
        sampled = [pictures[index] for index in sample_indices(len(pictures), self._num_frames)]
        frames = {
            picture: decode_image(self.kind, self.decode_base64(picture), self._transform) for picture in set(sampled)
        }
        return MediaWithBytes(np.stack([frames[picture] for picture in sampled]), data.encode())

    def _decode(self, data: bytes) -> np.ndarray:
        pool = shared_pool()
        return pool.run(
            self.kind,
            DECODE_CLIP,
            data,
            num_frames=self._num_frames,
            transform=self._transform,
            settings=self.settings,
            threads=pool.threads(),
        )


class _DecodedClips:
    """The last clips that were decoded, so that a chat about one of them decodes it once."""

    def __init__(self, max_bytes: int) -> None:
        self._results: LRUCache[Any, np.ndarray] = LRUCache(max_bytes, getsizeof=lambda frames: frames.nbytes)
        self._pending: dict[Any, Future[np.ndarray]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what `decode` returns, or has returned, or is about to return in another thread."""
        with self._lock:
            if key in self._results:
                return self._results[key]
            if pending := self._pending.get(key):
                mine = None
            else:
                mine = self._pending[key] = Future()
        if mine is None:
            return pending.result()
        try:
            frames = decode()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(frames)
            with self._lock:
                if frames.nbytes <= self._results.maxsize:
                    self._results[key] = frames
            return frames
        finally:
            with self._lock:
                del self._pending[key]


@cache
def _decoded_clips() -> _DecodedClips:
    return _DecodedClips(read_settings().decoded_cache_mb << 20)


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
        refusal = too_large(kind, "has more bytes than may be fetched", read_settings())
        raise MediaError(str(refusal), url=url) from error
    except NotImplementedError as error:
        raise MediaError(f"The {kind} is in a data URL that is not base64.", url=url) from error
    except (ValueError, RuntimeError, OSError) as error:
        if url[:5].lower() == "file:":
            sentence = f"The file of the {kind} cannot be read, or --allowed-local-media-path does not allow it."
            raise MediaError(sentence, detail=str(error), url=url) from error
        if isinstance(error, ValueError):
            raise MediaError(f"The {kind} cannot be fetched: {error}", url=url) from error
        raise
