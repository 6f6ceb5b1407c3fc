"""Decodes an image file."""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import pillow_heif
from PIL import Image, UnidentifiedImageError

from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.file_kinds import HEAD_BYTES, explain
from vllm_videollava.decoding.limits import check_image_size
from vllm_videollava.decoding.rgb import Colour, to_rgb

FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD"),
    *("QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
"""The formats, by Pillow's names, that Pillow reads without starting another program."""

# The next two statements affect the whole process. It is a worker, which imports this module before its first file.
pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
# Pillow's own limit warns, and then raises at twice the size.
Image.MAX_IMAGE_PIXELS = None


def decode_image(
    file: BinaryIO,
    transform: Callable[[np.ndarray], np.ndarray],
    max_pixels: int,
    background: Colour | None = None,
) -> np.ndarray:
    """Decode the first picture of an image file, convert it to RGB, and apply `transform`.

    Args:
        file: the image, open for reading.
        transform: from the upright picture, uint8 `[H, W, 3]`, to the result.
        max_pixels: limit for the number of pixels, 0 for none; vLLM's VLLM_MAX_IMAGE_PIXELS.
        background: see `to_rgb`.

    Returns:
        The result of `transform`.

    Raises:
        MediaError: the file is not an image that can be decoded, has too many pixels, or is too narrow.
    """
    return transform(_decode(file, max_pixels, background))


def _decode(file: BinaryIO, max_pixels: int, background: Colour | None) -> np.ndarray:
    head = file.read(HEAD_BYTES)
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_image_size(image.height, image.width, max_pixels)
            rgb = to_rgb(image, background)
            # A HEIF file may contain more pixels than its header says.
            check_image_size(image.height, image.width, max_pixels)
            return rgb
    except MediaError:
        raise
    except (UnidentifiedImageError, EOFError, OSError, RuntimeError, SyntaxError, ValueError) as error:
        sentence = "The image is damaged, or in a format that is not supported."
        if "truncated" in str(error).lower():
            sentence = "The image is cut off."
        raise MediaError(explain("image", head) or sentence) from error
