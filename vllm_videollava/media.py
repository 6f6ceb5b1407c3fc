"""Images and clips as users hand them over, made uniform: an RGB image, or frames in an array."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser

from vllm_videollava.errors import MediaError, check_sides
from vllm_videollava.frames import sample_array
from vllm_videollava.media_connector import VideoLlavaMediaConnector
from vllm_videollava.pixels import PreparedImage


class VideoLlavaDataParser(MultiModalDataParser):
    """Also takes paths, and keeps vLLM from blending transparent images with white.

    Args:
        num_frames: frames that the model takes of a clip.
        media_io_kwargs: vLLM's settings for loading media.
    """

    def __init__(self, num_frames: int, media_io_kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self._num_frames = num_frames
        # For `Path` only: a string may come from a client, a `Path` never does.
        self._connector = VideoLlavaMediaConnector(dict(media_io_kwargs), allowed_local_media_path="/")

    def parse_mm_data(self, mm_data: Mapping[str, Any]) -> MultiModalDataItems:
        """Load, check and convert media; other modalities are left to vLLM.

        Raises:
            MediaError: an item cannot be decoded, or is of a kind, shape or dtype that is not supported.
        """
        mm_data = dict(mm_data)
        if (images := mm_data.get("image")) is not None:
            mm_data["image"] = _read_each("Image", self._read_image, _split_images(images))
        if (videos := mm_data.get("video")) is not None:
            mm_data["video"] = _read_each("Video", self._read_video, _split_videos(videos))
        return super().parse_mm_data(mm_data)

    def _read_image(self, item: Any) -> Any:
        if isinstance(item, Path):
            item = self._connector.fetch_image(item.resolve().as_uri())
        if isinstance(item, MediaWithBytes):
            return dataclasses.replace(item, media=self._read_image(item.media))
        return item if item is None or isinstance(item, PreparedImage) else to_rgb(item)

    def _read_video(self, item: Any) -> Any:
        if isinstance(item, Path):
            item = self._connector.fetch_video(item.resolve().as_uri())
        if isinstance(item, MediaWithBytes):
            return dataclasses.replace(item, media=self._read_video(item.media))
        if isinstance(item, tuple):
            frames, metadata = item
            return self._read_video(frames), metadata
        return None if item is None else sample_array(to_frames(item), self._num_frames)


def _read_each(kind: str, read: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Read items; of what is wrong with one of several, say which it is."""
    results = []
    for number, item in enumerate(items, 1):
        try:
            results.append(read(item))
        except ValueError as error:
            sentence = f"{kind} {number}: {error}" if len(items) > 1 else str(error)
            raise MediaError(sentence, detail=getattr(error, "detail", None)) from error
    return results


def to_rgb(image: Any) -> Image.Image:
    """Convert an image to mode RGB as the original code does: transparency is dropped.

    Args:
        image: a PIL image, or uint8 `[H, W, 3]`, `[H, W]` or `[3, H, W]`.

    Raises:
        ValueError: it is none of these, or cannot be read.
    """
    if isinstance(image, Image.Image):
        check_sides("An image", image.height, image.width)
        try:
            return image.convert("RGB")
        except OSError as error:
            raise ValueError("The image cannot be read.") from error
    array = _as_uint8(image, "An image")
    if array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or not array.size:
        raise ValueError(f"An image array has shape {array.shape}; supported are [H, W, 3], [3, H, W] and [H, W].")
    check_sides("An image", *array.shape[:2])
    return Image.fromarray(array).convert("RGB")


def to_frames(frames: Any) -> np.ndarray:
    """Convert the frames of a clip to one array, uint8 `[N, H, W, 3]`.

    Args:
        frames: a list of images as `to_rgb` takes, all of one size, or uint8
            `[N, H, W, 3]` or `[N, 3, H, W]`.

    Raises:
        ValueError: it is none of these, or has no frames.
    """
    if isinstance(frames, list):
        images = [np.asarray(to_rgb(frame)) for frame in frames]
        if len({image.shape for image in images}) != 1:
            raise ValueError("The frames of a video must be at least one and all of one size.")
        return np.stack(images)
    array = _as_uint8(frames, "A video")
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"A video array has shape {array.shape}; supported are [N, H, W, 3] and [N, 3, H, W].")
    check_sides("A video", *array.shape[1:3])
    return array


def _as_uint8(array: Any, kind: str) -> np.ndarray:
    if not isinstance(array, (np.ndarray, torch.Tensor)):
        raise ValueError(f"{kind} was given as {type(array).__name__}, which is not supported.")
    array = np.asarray(array)
    if array.dtype != np.uint8:
        raise ValueError(f"{kind} array has dtype {array.dtype}; uint8 values from 0 to 255 are supported.")
    return array


def count_media(mm_data: Mapping[str, Any]) -> dict[str, int]:
    """Count the images and the videos that are handed over, by modality, without loading any."""
    split = {"image": _split_images, "video": _split_videos}
    return {
        modality: len(split[modality](data))
        for modality, data in mm_data.items()
        if modality in split and data is not None
    }


def _split_images(data: Any) -> list[Any]:
    return list(data) if isinstance(data, list) or _ndim(data) == 4 else [data]


def _split_videos(data: Any) -> list[Any]:
    if isinstance(data, list):
        # As vLLM sees it, a list of pictures is one clip.
        is_clip = data and all(isinstance(item, Image.Image) or _ndim(item) == 3 for item in data)
        return [data] if is_clip else data
    return list(data) if _ndim(data) == 5 else [data]


def _ndim(data: Any) -> int | None:
    return data.ndim if isinstance(data, (np.ndarray, torch.Tensor)) else None
