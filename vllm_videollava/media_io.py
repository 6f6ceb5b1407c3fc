"""From the bytes of images and clips to their pixels, within the limits that are set."""

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from vllm import envs as vllm_envs
from vllm.multimodal.media import MediaIO, MediaWithBytes

from vllm_videollava.data_urls import decode_base64
from vllm_videollava.decode_pool import shared_pool
from vllm_videollava.decoded_clips import decoded_clips
from vllm_videollava.envs import read_settings, variable
from vllm_videollava.errors import MediaError
from vllm_videollava.frames import sample_indices
from vllm_videollava.pixels import PreparedImage

DECODE_CLIP = "vllm_videollava.clip_decoder:decode_frames"
DECODE_IMAGE = "vllm_videollava.image_decoder:decode_image"


class _BoundedIO(MediaIO[MediaWithBytes]):
    """Reads no more bytes than VIDEO_LLAVA_MAX_MEDIA_MB allows."""

    kind: str

    def __init__(self) -> None:
        self.settings = read_settings()

    def load_base64(self, media_type: str, data: str) -> MediaWithBytes:
        self.check_size(len(data) * 3 // 4)
        return self.load_bytes(decode_base64(self.kind, data))

    def load_file(self, filepath: Path) -> MediaWithBytes:
        if not filepath.is_file():
            raise FileNotFoundError(filepath)
        self.check_size(filepath.stat().st_size)
        return self.load_bytes(filepath.read_bytes())

    def get_max_bytes(self) -> int:
        return self.settings.max_media_mb << 20

    def check_size(self, num_bytes: int) -> None:
        if not num_bytes:
            raise MediaError(f"The {self.kind} is empty.")
        most = self.settings.max_media_mb
        if num_bytes > most << 20:
            limit = f"{variable('max_media_mb')} is {most}, which allows {most << 20}"
            raise MediaError(f"The {self.kind} has {num_bytes} bytes; {limit}.")


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
        return MediaWithBytes(decoded_clips().get(key, partial(self._decode, data)), data)

    def load_base64(self, media_type: str, data: str) -> MediaWithBytes[np.ndarray]:
        if media_type.lower() != "video/jpeg":
            return super().load_base64(media_type, data)
        self.check_size(len(data) * 3 // 4)
        pictures = data.split(",")
        sampled = [pictures[index] for index in sample_indices(len(pictures), self._num_frames)]
        frames = {
            picture: decode_image(self.kind, decode_base64(self.kind, picture), self._transform)
            for picture in set(sampled)
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
