"""Turns images and videos into pixels, in all the forms in which Python users and their libraries pass them."""

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser

from vllm_videollava.compat import VideosByIdParser
from vllm_videollava.decoding import rgb
from vllm_videollava.decoding.errors import MediaError, shorten
from vllm_videollava.decoding.limits import check_sides
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.decoding.pixels import PreparedImage, PreparedVideo, prepare_image, prepare_video
from vllm_videollava.decoding.rgb import Colour
from vllm_videollava.decoding.sampling import sample_array, sample_indices
from vllm_videollava.media.embeddings import EmbeddingFormat, convert_embeddings, split_embeddings
from vllm_videollava.media.io import MediaDecoder, MediaFile, MediaFileIO
from vllm_videollava.text.placeholders import PLACEHOLDERS

_CHANNELS = (3, 4, 1)
"""RGB, RGBA and grey. If a shape can be read in several ways, the first of these wins, then channels last."""
_SUPPORTED = {
    "The image": "a PIL image, an array, a tensor or a pathlib.Path",
    "The video": "a list of images, an array, a tensor or a pathlib.Path",
    "A frame": "a PIL image, an array or a tensor",
}


class VideoLlavaDataParser(VideosByIdParser, MultiModalDataParser):
    """Also takes paths and other libraries' arrays; keeps vLLM from blending transparent images with white.

    Args:
        pixel_format: format of the pixels that files are decoded to.
        background: the colour behind transparent images in files; None drops transparency.
        embedding_format: the form of embeddings that are accepted in place of images and videos.
    """

    def __init__(
        self,
        pixel_format: PixelFormat,
        background: Colour | None = None,
        embedding_format: EmbeddingFormat | None = None,
    ) -> None:
        super().__init__()
        self._embedding_format = embedding_format
        self._format = pixel_format
        self._background = background
        self._decoder = MediaDecoder(pixel_format, background)

    def parse_mm_data(self, mm_data: Mapping[str, Any]) -> MultiModalDataItems:
        """Load, check and convert media; check embeddings.

        An image becomes a `PreparedImage`, a video a `PreparedVideo`, so that
        vLLM's cache recognises equal pixels in whatever form they were passed.

        Raises:
            MediaError: an item cannot be read; its kind, shape, dtype or range is not supported; or it is of another
                modality.
        """
        mm_data = dict(mm_data)
        check_modalities(mm_data)
        if (images := mm_data.get("image")) is not None:
            mm_data["image"] = self._convert_embeddings("image", images) or _read_each(
                "Image", self._read_image, _split_images(images)
            )
        if (videos := mm_data.get("video")) is not None:
            mm_data["video"] = self._convert_embeddings("video", videos) or _read_each(
                "Video", self._read_video, _split_videos(videos)
            )
        return super().parse_mm_data(mm_data)

    def _convert_embeddings(self, modality: str, data: Any) -> list[torch.Tensor] | None:
        if self._embedding_format is None or not (items := split_embeddings(data)):
            return None
        convert = partial(convert_embeddings, modality, form=self._embedding_format)
        return _read_each(modality.capitalize(), convert, items)

    def _decode_file(self, kind: str, path: Path) -> MediaWithBytes:
        file = _read_file(kind, path)
        try:
            return self._decoder.decode(file)
        except MediaError as error:
            raise _about(path, error) from error

    def _read_image(self, item: Any) -> Any:
        if isinstance(item, Path):
            item = self._decode_file("image", item)
        if isinstance(item, MediaWithBytes):
            return item if isinstance(item.media, PreparedImage) else self._read_image(item.media)
        if item is None or isinstance(item, PreparedImage):
            return item
        return prepare_image(to_rgb(item, self._background), self._format.image_size, original=self._format.original)

    def _read_video(self, item: Any) -> Any:
        if isinstance(item, Path):
            item = self._decode_file("video", item)
        if isinstance(item, MediaWithBytes):
            return item if isinstance(item.media, PreparedVideo) else self._read_video(item.media)
        if _is_clip_and_more(item):
            return self._read_video(item[0])
        if item is None or isinstance(item, PreparedVideo):
            return item
        frames = to_frames(item, self._format.num_frames, self._background)
        return prepare_video(frames, self._format.video_size, original=self._format.original)


def _read_file(kind: str, path: Path) -> MediaFile:
    """Read a file of the user; errors may name its path, because the user gave it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(0, "it is not a regular file")
        return MediaFileIO(kind).load_file(path)
    except MediaError as error:
        raise _about(path, error) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise MediaError(f"The {kind} file {str(path)!r} cannot be read: {why}.") from error


def _about(path: Path, error: MediaError) -> MediaError:
    return MediaError(str(error), detail=error.detail, url=path.absolute().as_uri())


def _read_each(kind: str, read: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Read items; if there are several, an error says which one it is about."""
    results = []
    for number, item in enumerate(items, 1):
        try:
            results.append(read(item))
        except ValueError as error:
            sentence = f"{kind} {number}: {error}" if len(items) > 1 else str(error)
            detail, url = getattr(error, "detail", None), getattr(error, "url", None)
            raise MediaError(sentence, detail=detail, url=url) from error
    return results


def to_rgb(image: Any, background: Colour | None = None) -> np.ndarray:
    """Convert an image to 8-bit RGB.

    Args:
        image: a PIL image (see `vllm_videollava.decoding.rgb.to_rgb`), or an
            array or tensor `[H, W, C]`, `[C, H, W]` or `[H, W]`, with C = 3, 4
            (the fourth is alpha) or 1. If both the first and the last axis
            could be C, 3 wins over 4, 4 over 1, and the last axis over the
            first. Values are whole numbers from 0 to 255 in any dtype, floats
            from 0 to 1, or bool. Floats that are all at most 1 count as floats
            from 0 to 1, so 1.0 is white.
        background: the colour behind transparent pixels; None drops transparency.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: the image is none of these, or cannot be read.
    """
    return _to_rgb(image, "The image", background)


def to_frames(frames: Any, num_frames: int | None = None, background: Colour | None = None) -> np.ndarray:
    """Convert the frames of a clip to one array.

    Args:
        frames: a list or tuple of images as `to_rgb` takes them, all of one
            size, or an array or tensor of such images. The range of the values
            is determined from all the wanted frames together.
        num_frames: number of wanted frames, evenly spread; None for all.
        background: see `to_rgb`.

    Returns:
        uint8 `[num_frames, H, W, 3]`.

    Raises:
        ValueError: the frames are none of these, or there are none.
    """
    if isinstance(frames, (list, tuple)):
        if not frames:
            raise ValueError("The video has no frames.")
        indices = np.unique(sample_indices(len(frames), num_frames or len(frames)))
        clip = _list_to_rgb([frames[index] for index in indices], background)
        return sample_array(clip, num_frames or len(clip))
    array = _as_array(frames, "The video")
    _check_shape(tuple(array.shape), "The video", is_clip=True)
    array = _to_numpy(array, "The video", sample_indices(len(array), num_frames or len(array)))
    return _arrays_to_rgb(array, "The video", background)


def _list_to_rgb(pictures: list[Any], background: Colour | None) -> np.ndarray:
    """Convert frames; if they are all of one kind, the range of the values is determined from all together."""
    if not any(isinstance(picture, Image.Image) for picture in pictures):
        arrays = [_to_numpy(_as_array(picture, "A frame"), "A frame") for picture in pictures]
        # NumPy would turn integers into floats, and so change the meaning of their values.
        if len({(array.shape, array.dtype.kind.replace("u", "i")) for array in arrays}) == 1:
            _check_shape(arrays[0].shape, "A frame")
            return _arrays_to_rgb(np.stack(arrays), "A frame", background)
    elif {getattr(picture, "mode", None) for picture in pictures} in ({"I"}, {"F"}):
        return _wide_grey_to_rgb(pictures)
    images = [_to_rgb(picture, "A frame", background) for picture in pictures]
    _check_sizes([image.shape[1::-1] for image in images])
    return np.stack(images)


def _wide_grey_to_rgb(pictures: list[Image.Image]) -> np.ndarray:
    """Convert pictures of mode I or F together, as if they were one picture."""
    with _reading("A frame"):
        pictures = [rgb.to_upright(picture) for picture in pictures]
    _check_sizes([picture.size for picture in pictures])
    width, height = pictures[0].size
    check_sides("A frame", height, width)
    with _reading("A frame"):
        column = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))
        return rgb.to_rgb(column).reshape(-1, height, width, 3)


def _check_sizes(sizes: list[tuple[int, int]]) -> None:
    if len(different := sorted(set(sizes))) > 1:
        named = " and ".join(f"{width}x{height}" for width, height in different[:2])
        raise ValueError(f"The frames of a video must all have the same size; these have {named} pixels.")


def _to_rgb(image: Any, kind: str, background: Colour | None) -> np.ndarray:
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"{kind} of {image.width}x{image.height} pixels is empty.")
        check_sides(kind, image.height, image.width)
        with _reading(kind):
            return rgb.to_rgb(image, background)
    array = _as_array(image, kind)
    _check_shape(tuple(array.shape), kind)
    return _arrays_to_rgb(_to_numpy(array, kind)[None], kind, background)[0]


@contextmanager
def _reading(kind: str) -> Iterator[None]:
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Exception as error:
        # Pillow raises nearly anything for a damaged or closed image.
        raise ValueError(f"{kind} cannot be read; it is damaged, or its file is closed.") from error


def _arrays_to_rgb(pictures: np.ndarray, kind: str, background: Colour | None) -> np.ndarray:
    """Convert pictures of one shape, `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`."""
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    else:
        pictures = np.moveaxis(pictures, _channel_axis(pictures.shape[1:]), -1)
    check_sides(kind, *pictures.shape[1:3])
    pictures = _to_uint8(pictures, kind)
    if pictures.shape[-1] == 1:
        return pictures.repeat(3, axis=-1)
    if pictures.shape[-1] == 4 and background is not None:
        return np.stack([rgb.to_rgb(Image.fromarray(picture), background) for picture in pictures])
    return np.ascontiguousarray(pictures[..., :3])


def _to_uint8(values: np.ndarray, kind: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{kind} array has dtype {values.dtype}; it must have integers, floats or bool.")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{kind} array has infinite or NaN values; replace them first.")
    is_fraction = values.dtype.kind in "bf" and low >= 0 and high <= 1
    # One picture after another, to save memory.
    is_whole = values.dtype.kind in "iu" or all(np.array_equal(part, np.trunc(part)) for part in values)
    if not is_fraction and not (is_whole and low >= 0 and high <= 255):
        fractions = " that are not all whole numbers" if low >= 0 and high <= 255 else ""
        raise ValueError(
            f"{kind} array has {values.dtype} values from {_show(low)} to {_show(high)}{fractions}; "
            "they must be whole numbers from 0 to 255, or floats from 0 to 1."
        )
    result = np.empty(values.shape, np.uint8)
    for part, into in zip(values, result, strict=True):
        into[...] = np.rint(part.astype(np.float64) * 255) if is_fraction else part
    return result


def _show(number: Any) -> str:
    return text if float(text := f"{number:g}") == number else str(number)


def _as_array(data: Any, kind: str) -> np.ndarray | torch.Tensor:
    given = type(data)
    name = given.__name__ if given.__module__ == "builtins" else f"{given.__module__}.{given.__name__}"
    if not _is_array(data):
        raise ValueError(f"{kind} cannot be of type {name}; it must be {_SUPPORTED[kind]}.")
    try:
        return data if isinstance(data, torch.Tensor) else np.asarray(_asnumpy(data))
    except Exception as error:
        # Each library raises its own errors.
        raise ValueError(f"{kind} of type {name} cannot be read; pass a NumPy array or a torch tensor.") from error


def _asnumpy(data: Any) -> Any:
    # decord's arrays have their own method.
    return data.asnumpy() if hasattr(data, "asnumpy") else data


def _is_array(data: Any) -> bool:
    """Tell whether an object is an array or a tensor, without converting it."""
    # vLLM's wrapper around media looks like an array but is not one.
    is_convertible = hasattr(data, "asnumpy") or (hasattr(data, "__array__") and not isinstance(data, MediaWithBytes))
    return isinstance(data, torch.Tensor) or (is_convertible and hasattr(data, "shape"))


def _to_numpy(array: np.ndarray | torch.Tensor, kind: str, indices: np.ndarray | EllipsisType = ...) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array[indices]
    try:
        array = array[indices]
        # NumPy has neither bfloat16 nor 8-bit floats.
        if array.is_floating_point() and array.dtype not in (torch.float16, torch.float32, torch.float64):
            array = array.float()
        return array.numpy(force=True)
    except (RuntimeError, TypeError) as error:
        form = f"dtype {array.dtype}, layout {array.layout} and device {array.device}"
        raise ValueError(f"{kind} tensor of {form} cannot be read; pass a dense tensor of numbers.") from error


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    return next((axis for size in _CHANNELS for axis in (-1, -3) if shape[axis] == size), None)


def _check_shape(shape: tuple[int, ...], kind: str, is_clip: bool = False) -> None:
    picture = shape[1:] if is_clip else shape
    # Three axes are the frames of a grey clip, unless they could be a single picture.
    is_grey = len(picture) == 2 and not (is_clip and _channel_axis(shape) is not None)
    is_coloured = len(picture) == 3 and _channel_axis(picture) is not None
    if 0 in shape or not (is_grey or is_coloured):
        n = "N, " if is_clip else ""
        supported = f"[{n}H, W, C], [{n}C, H, W] or [{n}H, W], with C = 3, 4 or 1"
        raise ValueError(f"{kind} array has shape {shape}; it must be {supported}.")


def check_modalities(modalities: Iterable[str]) -> None:
    """Check that media are images and videos.

    Raises:
        MediaError: one is of another modality.
    """
    for modality in modalities:
        if modality not in PLACEHOLDERS:
            raise MediaError(f"The request has {shorten(modality)} media; this model takes images and videos.")


def count_media(mm_data: Mapping[str, Any], *, takes_embeddings: bool = False) -> dict[str, int]:
    """Count the images and videos that a user has passed, by modality, without loading any."""
    split = {"image": _split_images, "video": _split_videos}
    return {
        modality: len((split_embeddings(data) if takes_embeddings else None) or split[modality](data))
        for modality, data in mm_data.items()
        if modality in split and data is not None
    }


def _split_images(data: Any) -> list[Any]:
    """Return the images in the data that a user has passed."""
    if isinstance(data, (list, tuple)):
        return list(data)
    is_batch = _count_axes(data) == 4 and not isinstance(data, PreparedImage)
    return list(_as_array(data, "The image")) if is_batch else [data]


def _split_videos(data: Any) -> list[Any]:
    """Return the videos in the data that a user has passed; as in vLLM, a list of pictures is one video."""
    if isinstance(data, (list, tuple)):
        is_clip = _is_clip_and_more(data) or any(isinstance(item, Image.Image) for item in data)
        is_clip = is_clip or (bool(data) and all(_count_axes(item) in (2, 3) for item in data))
        return [data] if is_clip else list(data)
    return list(_as_array(data, "The video")) if _count_axes(data) == 5 else [data]


def _is_clip_and_more(data: Any) -> bool:
    """Tell whether this is a video together with its metadata, its rate or its sound."""
    return (
        isinstance(data, tuple)
        and len(data) > 1
        and _is_medium(data[0])
        and not any(_is_medium(item) for item in data[1:])
    )


def _is_medium(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return bool(data) and _is_medium(data[0])
    return isinstance(data, (Image.Image, Path, MediaWithBytes)) or _count_axes(data) > 2


def _count_axes(data: Any) -> int:
    return len(data.shape) if _is_array(data) else 0
