"""Image files of every kind become RGB as Pillow does it, upright, or are refused with a sentence."""

import io

import numpy as np
import pytest
from clips import smooth_frames
from PIL import Image

from vllm_videollava.errors import MediaError
from vllm_videollava.image_decoder import decode_image

RGB = smooth_frames(1, 32, 48)[0]
MODES = {
    "L": 200,
    "LA": (200, 10),
    "RGBA": (10, 200, 30, 40),
    "1": 1,
    "P": 3,
    "I;16": 40000,
    "I": 70000,
    "RGB": (1, 2, 3),
}


def encode(image: Image.Image, name: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def decode(data: bytes, max_pixels: int = 0) -> np.ndarray:
    return decode_image(io.BytesIO(data), lambda rgb: rgb, max_pixels)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode):
    data = encode(Image.new(mode, (20, 10), MODES[mode]), "TIFF" if mode == "I" else "PNG")
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_inks_become_colours():
    data = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG")
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("name", ["GIF", "WEBP", "TIFF", "PNG"])
def test_an_animation_is_its_first_picture(name):
    pictures = [Image.fromarray(np.roll(RGB, 9 * index, 1)) for index in range(3)]
    data = encode(pictures[0], name, save_all=True, append_images=pictures[1:])
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


TURNS = {
    1: lambda rgb: rgb,
    2: np.fliplr,
    3: lambda rgb: np.rot90(rgb, 2),
    4: np.flipud,
    5: lambda rgb: rgb.transpose(1, 0, 2),
    6: lambda rgb: np.rot90(rgb, -1),
    7: lambda rgb: np.rot90(rgb, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_camera(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encode(Image.fromarray(RGB), exif=exif)), TURNS[orientation](RGB))


def test_damaged_exif_data_are_passed_over():
    assert np.array_equal(decode(encode(Image.fromarray(RGB), exif=b"Exif\x00\x00junk")), RGB)


REFUSED = {
    "empty": b"",
    "text": b"hello",
    "cut off": encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))[:-2000],
    "format that is not let in": encode(Image.fromarray(RGB).convert("L"), "EPS"),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_no_image(data):
    with pytest.raises(MediaError, match=r"^The image (cannot be decoded|is damaged, or in a format)"):
        decode(data)


def test_pixels_are_counted_before_they_are_decoded():
    """Three kilobytes that would be a gigabyte."""
    data = encode(Image.new("1", (20_000, 20_000)))
    with pytest.raises(MediaError, match=r"^The image has 20000x20000 = 400000000 pixels; VLLM_MAX_IMAGE_PIXELS is"):
        decode(data, max_pixels=178_956_970)


def test_a_narrow_image():
    assert decode(encode(Image.new("L", (640, 10)))).shape == (10, 640, 3)
    with pytest.raises(
        MediaError, match=r"^The image of 641x10 pixels is too narrow; one side may be at most 64 times"
    ):
        decode(encode(Image.new("L", (641, 10))))
