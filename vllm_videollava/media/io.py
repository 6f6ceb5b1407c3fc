"""Reads image and video files within the limits, and has them decoded."""

import asyncio
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from blake3 import blake3
from vllm import envs as vllm_envs
from vllm.multimodal.media import MediaIO, MediaWithBytes

from vllm_videollava.decoding.cache import decoded_videos
from vllm_videollava.decoding.data_urls import decode_base64
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.limits import check_base64_size, check_file_size, max_file_bytes
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.decoding.pixels import PreparedImage, PreparedVideo, frame_pixels, prepare_image
from vllm_videollava.decoding.pool import Job, shared_pool
from vllm_videollava.decoding.rgb import Colour
from vllm_videollava.decoding.settings import read_settings

DECODE_IMAGE = "vllm_videollava.decoding.image:decode_image"
DECODE_VIDEO = "vllm_videollava.decoding.video:decode_frames"
DECODE_PICTURES = "vllm_videollava.decoding.video:decode_picture_sequence"


@dataclass(frozen=True)
class MediaFile:
    """A file that a client or user has sent.

    Attributes:
        kind: "image" or "video".
        data: the file's bytes, or with `is_sequence` the base64 of several JPEGs with commas between them.
        digest: hash of `data`.
    """

    kind: str
    data: bytes
    is_sequence: bool
    digest: bytes


class MediaFileIO(MediaIO[MediaFile]):
    """Reads a file of at most VIDEO_LLAVA_MAX_MEDIA_MB MiB.

    Raises:
        MediaError: the file is too large, empty, or not valid base64.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self._settings = read_settings()

    def get_max_bytes(self) -> int:
        """Return the largest number of bytes that vLLM may download."""
        return max_file_bytes(self._settings)

    def load_bytes(self, data: bytes, *, is_sequence: bool = False) -> MediaFile:
        check_file_size(self._kind, len(data), self._settings)
        context = f"vllm-videollava {'pictures' if is_sequence else 'file'}"
        return MediaFile(self._kind, data, is_sequence, blake3(data, derive_key_context=context).digest())

    def load_base64(self, media_type: str, data: str) -> MediaFile:
        check_base64_size(self._kind, len(data), self._settings)
        if self._kind == "video" and media_type.lower() == "video/jpeg":
            return self.load_bytes(data.encode(), is_sequence=True)
        return self.load_bytes(decode_base64(self._kind, data))

    def load_file(self, filepath: Path) -> MediaFile:
        if not filepath.is_file():
            raise FileNotFoundError(filepath)
        check_file_size(self._kind, filepath.stat().st_size, self._settings)
        return self.load_bytes(filepath.read_bytes())


class MediaDecoder:
    """Has the processes of `decoding.pool` decode files to pixels.

    An image becomes a `PreparedImage`, a video a `PreparedVideo`. The pixels
    carry the file's digest in place of the file; vLLM's caches use it as key.

    Args:
        background: the colour behind transparent images; None drops transparency.

    Raises:
        MediaError: the file cannot be decoded, or goes beyond a setting.
        DecoderUnavailableError: decoding does not work at present.
    """

    def __init__(self, pixel_format: PixelFormat, background: Colour | None = None) -> None:
        self._format = pixel_format
        self._background = background

    def decode(self, file: MediaFile) -> MediaWithBytes:
        if file.kind == "image":
            return self._image(file, shared_pool().submit(self._image_job(file)).result())
        return self._video(file, decoded_videos().get(self._key(file), partial(self._submit_video, file)))

    async def decode_async(self, file: MediaFile) -> MediaWithBytes:
        if file.kind == "image":
            future = shared_pool().submit(self._image_job(file))
            return self._image(file, await asyncio.wrap_future(future))
        return self._video(file, await decoded_videos().get_async(self._key(file), partial(self._submit_video, file)))

    def _image(self, file: MediaFile, pixels: np.ndarray) -> MediaWithBytes[PreparedImage]:
        return MediaWithBytes(pixels.view(PreparedImage), file.digest + bytes(self._background or ()))

    def _video(self, file: MediaFile, pixels: np.ndarray) -> MediaWithBytes[PreparedVideo]:
        return MediaWithBytes(pixels.view(PreparedVideo), file.digest)

    def _image_job(self, file: MediaFile) -> Job:
        transform = partial(prepare_image, size=self._format.image_size, original=self._format.original)
        max_pixels = vllm_envs.VLLM_MAX_IMAGE_PIXELS
        arguments = {"transform": transform, "max_pixels": max_pixels, "background": self._background}
        return Job("image", DECODE_IMAGE, file.data, arguments, self._format.image_shape)

    def _key(self, file: MediaFile) -> tuple:
        return file.digest, file.is_sequence, self._format

    def _submit_video(self, file: MediaFile):
        size, original = self._format.video_size, self._format.original
        arguments = {
            "num_frames": self._format.num_frames,
            "transform": partial(frame_pixels, size=size, original=original),
            "settings": read_settings(),
        }
        if file.is_sequence:
            arguments["max_pixels"] = vllm_envs.VLLM_MAX_IMAGE_PIXELS
            job = Job("video", DECODE_PICTURES, file.data, arguments, self._format.clip_shape)
        else:
            job = Job("video", DECODE_VIDEO, file.data, arguments, self._format.clip_shape, threaded=True)
        return shared_pool().submit(job)


def check_decoding() -> None:
    """Decode a small picture, so that a broken installation fails now and not at the first request.

    Raises:
        RuntimeError: decoding does not work here.
    """
    if not sys.platform.startswith("linux"):
        raise RuntimeError(f"Images and videos are decoded on Linux only; this is {sys.platform}.")
    try:
        pixels = MediaDecoder(PixelFormat(1, 1, 1, True)).decode(MediaFileIO("image").load_bytes(RED_PIXEL)).media
    except MediaError as error:
        detail = f" ({error.detail})" if error.detail else ""
        raise RuntimeError(f"Decoding does not work in this installation{detail}: {error}") from error
    if not (pixels == (255, 0, 0)).all():
        raise RuntimeError(
            "Decoding does not work in this installation: a red test picture was decoded to another colour."
        )


RED_PIXEL = b"P6 1 1 255\n\xff\x00\x00"
"""A red picture in the PPM format."""
