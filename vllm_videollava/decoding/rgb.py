"""Turns a picture of any mode into upright 8-bit RGB, in the worker and for pictures handed over offline."""

from typing import Any

import numpy as np
from PIL import ExifTags, Image

from vllm_videollava.decoding.errors import MediaError

Colour = tuple[int, int, int]
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""For each EXIF orientation, the operation that turns the picture upright."""
_STRAIGHT_ALPHA = {"RGBa": "RGBA", "La": "LA"}


def to_rgb(image: Image.Image, background: Colour | None = None) -> np.ndarray:
    """Convert a picture to upright RGB.

    Grey of more than 8 bits is scaled, where Pillow clips it: 16 bits from
    their whole range. 32-bit integers and floats have no range of their own:
    floats from 0 to 1 are scaled from these; integers, and floats that are
    whole, from 0 to 255 stay as they are; other integers up to 65535 are taken
    for 16 bits; anything else is scaled from its lowest value, or 0 if that is
    less, to its highest.

    Args:
        background: the colour behind transparent pixels, as vLLM blends them;
            with None transparency is dropped, as the original code does.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        MediaError: values are infinite or not a number.
        Exception: whatever Pillow raises for a file that is damaged.
    """
    # Load here and not while reading the orientation, so that errors in the pixels are reported.
    image.load()
    turn = _TURNS.get(_read_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_grey(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in _STRAIGHT_ALPHA:
        image = image.convert(_STRAIGHT_ALPHA[image.mode])
    # Like vLLM, leave an RGB image with one transparent colour as it is.
    if background is not None and image.mode != "RGB" and image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, background)
        opaque.paste(image, mask=image.getchannel("A"))
        image = opaque
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _read_orientation(image: Image.Image) -> Any:
    # Damaged EXIF data may raise anything; the picture is still fine.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if isinstance(orientation, int) else None
    except Exception:
        return None


def _to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = _full_range(image, values)
    scaled = values.astype(np.float64)
    scaled -= low
    scaled *= 255 / (high - low)
    grey = Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _full_range(image: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white."""
    if image.mode.startswith("I;"):
        # TIFF also has grey of 12 bits.
        (bits,) = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))
        return 0, 2**bits - 1
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise MediaError("The image has values that are infinite or not a number; replace them before sending it.")
    whole = image.mode == "I" or np.array_equal(values, np.rint(values))
    if low >= 0:
        if image.mode == "F" and high <= 1:
            return 0, 1
        if whole and high <= 255:
            return 0, 255
        if image.mode == "I" and high <= 65535:
            return 0, 65535
    return min(low, 0), max(high, 0)
