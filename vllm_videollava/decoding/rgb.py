"""Turns a picture of any mode into upright 8-bit RGB, for workers and for pictures that offline users pass."""

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
"""The operation that turns a picture upright, by EXIF orientation."""
_STRAIGHT_ALPHA = {"RGBa": "RGBA", "La": "LA"}


def to_rgb(image: Image.Image, background: Colour | None = None) -> np.ndarray:
    """Convert a picture to upright RGB.

    Grey of more than 8 bits is scaled, where Pillow would clip it. 16-bit grey
    is scaled from its full range. 32-bit integers and floats have no fixed
    range, so it depends on the values:

    - floats from 0 to 1 are scaled from that range;
    - integers, and floats that are whole, from 0 to 255 stay as they are;
    - other integers from 0 to 65535 are treated as 16-bit grey;
    - anything else is scaled from its lowest value, or 0 if that is lower, to
      its highest value, or 0 if that is higher.

    Args:
        background: the colour behind transparent pixels, blended as by vLLM;
            None drops transparency, as the original code does.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        MediaError: values are infinite or not a number.
        Exception: any error that Pillow raises for a damaged file.
    """
    turn = _load_and_find_turn(image)
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


def to_upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data say.

    Raises:
        Exception: any error that Pillow raises for a damaged file.
    """
    turn = _load_and_find_turn(image)
    return image if turn is None else image.transpose(turn)


def _load_and_find_turn(image: Image.Image) -> Image.Transpose | None:
    # Loaded here so that errors in the pixels are reported; reading the orientation ignores errors.
    image.load()
    return _TURNS.get(_read_orientation(image))


def _read_orientation(image: Image.Image) -> Any:
    # Damaged EXIF data may raise anything; the picture itself is still fine.
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
        # TIFF files may also have 12-bit grey.
        (bits,) = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))
        return 0, 2**bits - 1
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise MediaError("The image has infinite or NaN values; replace them first.")
    whole = image.mode == "I" or np.array_equal(values, np.rint(values))
    if low >= 0:
        if image.mode == "F" and high <= 1:
            return 0, 1
        if whole and high <= 255:
            return 0, 255
        if image.mode == "I" and high <= 65535:
            return 0, 65535
    return min(low, 0), max(high, 0)
