"""Decoding an image file."""

from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vllm_videollava.errors import MediaError, check_sides

FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD"),
    *("QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
"""Pillow's names of those of its formats that start no other program."""


def decode_image(
    file: BinaryIO, transform: Callable[[np.ndarray], np.ndarray], max_pixels: int, background=None
) -> np.ndarray:
    """Decode the first picture of an image file, convert it as the original code does, and apply `transform`.

    Args:
        file: the image, open for reading.
        transform: from the upright picture, uint8 `[H, W, 3]`, RGB without
            transparency, to what is wanted of it.
        max_pixels: of the largest image, 0 for no limit; vLLM's VLLM_MAX_IMAGE_PIXELS.

    Returns:
        What `transform` returned.

    Raises:
        MediaError: the file is no image that can be decoded, has too many pixels, or is too narrow.
    """
    # Pillow's own limit warns, and then raises at twice the size.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image, max_pixels)
            # Damaged EXIF data is no reason to refuse a picture.
            with suppress(SyntaxError, ValueError, KeyError, TypeError):
                ImageOps.exif_transpose(image, in_place=True)
            return transform(np.asarray(image.convert("RGB")))
    except UnidentifiedImageError as error:
        raise MediaError("The image is damaged, or in a format that is not supported.") from error
    except OSError as error:
        raise MediaError(f"The image cannot be decoded: {error}.") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    check_sides("The image", image.height, image.width)
    num_pixels = image.width * image.height
    if 0 < max_pixels < num_pixels:
        what = f"{image.width}x{image.height} = {num_pixels} pixels"
        raise MediaError(f"The image has {what}; VLLM_MAX_IMAGE_PIXELS is {max_pixels}.")
