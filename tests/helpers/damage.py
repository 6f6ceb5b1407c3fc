"""Damage to files: bytes changed, cut off, taken out, put in twice, or blanked, in the header and elsewhere."""

import io
import random

import numpy as np
from PIL import Image

from helpers.clips import CODECS, encode_as, moving_frames

IMAGE_FORMATS = {
    "PNG": "RGB",
    "JPEG": "RGB",
    "WEBP": "RGB",
    "GIF": "P",
    "BMP": "RGB",
    "TIFF": "RGB",
    "PPM": "RGB",
    "ICO": "RGBA",
    "JPEG2000": "RGB",
    "AVIF": "RGB",
    "TGA": "RGB",
}


def good_videos() -> list[bytes]:
    """One short clip in each codec and container."""
    frames = moving_frames(24, 64, 96)
    return [encode_as(name, frames) for name in CODECS]


def good_images() -> list[bytes]:
    """One small picture in each format, and in the modes that few expect."""
    rgb = Image.fromarray(moving_frames(1, 60, 80)[0])
    images = [_encode(rgb.convert(mode), name) for name, mode in IMAGE_FORMATS.items()]
    deep = Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13)
    animation = io.BytesIO()
    rgb.save(animation, "GIF", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = [_encode(deep, "PNG"), _encode(rgb.convert("CMYK"), "JPEG"), _encode(rgb, "JPEG", exif=exif)]
    return [*images, *odd, animation.getvalue()]


def _encode(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def damage(data: bytes, random: random.Random) -> bytes:
    """Return a copy of a file with one to three faults."""
    for _ in range(random.randint(1, 3)):
        data = random.choice(FAULTS)(bytearray(data), random)
    return bytes(data)


def _place(data: bytearray, random: random.Random) -> int:
    # Half of the faults in the header, where most harm is done.
    return random.randrange(min(len(data), 512) if random.random() < 0.5 else len(data)) if data else 0


def _flip(data: bytearray, random: random.Random) -> bytearray:
    for _ in range(random.choice((1, 4, 32))):
        if data:
            data[_place(data, random)] = random.randrange(256)
    return data


def _enlarge(data: bytearray, random: random.Random) -> bytearray:
    start = _place(data, random)
    data[start : start + 4] = random.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00"))
    return data


def _cut_off(data: bytearray, random: random.Random) -> bytearray:
    return data[: _place(data, random)]


def _take_out(data: bytearray, random: random.Random) -> bytearray:
    start = _place(data, random)
    del data[start : start + random.randint(1, 200)]
    return data


def _repeat(data: bytearray, random: random.Random) -> bytearray:
    start = _place(data, random)
    return data[:start] + data[max(0, start - random.randint(1, 200)) :]


def _blank(data: bytearray, random: random.Random) -> bytearray:
    start = _place(data, random)
    piece = data[start : start + random.randint(1, 400)]
    data[start : start + len(piece)] = bytes(len(piece))
    return data


FAULTS = (_flip, _flip, _enlarge, _cut_off, _take_out, _repeat, _blank)
