"""Image files of every kind become RGB as Pillow does it, upright, or are refused with a sentence."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from vllm.multimodal.image import convert_image_mode

from helpers.clips import encode_clip, smooth_frames
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.image import decode_image

RGB = smooth_frames(1, 32, 48)[0]
LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
"""For HEIF."""
MODES = {
    "L": 200,
    "LA": (200, 10),
    "RGBA": (10, 200, 30, 40),
    "1": 1,
    "P": 3,
    "RGB": (1, 2, 3),
}


def encode(image: Image.Image, name: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def decode(data: bytes, max_pixels: int = 0, background=None) -> np.ndarray:
    return decode_image(io.BytesIO(data), lambda rgb: rgb, max_pixels, background)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode):
    data = encode(Image.new(mode, (20, 10), MODES[mode]))
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


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "HEIF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_camera(orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"HEIF": LOSSLESS, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(name, {})
    upright = decode(encode(Image.fromarray(RGB), name, exif=exif.tobytes(), **options))
    assert np.allclose(upright, TURNS[orientation](RGB), atol=3 if name == "JPEG" else 0)


def test_heif_has_an_orientation_of_its_own():
    """In the file's structure; the standard says that EXIF data have no say beside it, nor alone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    # Unlike bytes, this is written to the EXIF data only.
    data = encode(Image.fromarray(RGB), "HEIF", exif=exif, **LOSSLESS)
    assert pillow_heif.open_heif(data).info["exif"]
    assert b"irot" not in data
    assert np.array_equal(decode(data), RGB)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_heif_of_telephones(mode):
    """In tiles, and with the picture that is meant not the first."""
    image = Image.fromarray(smooth_frames(1, 300, 200)[0]).convert(mode)
    data = encode(image, "HEIF", **LOSSLESS, tile_size=128)
    assert data[4:11] == b"ftyphei"
    assert np.abs(decode(data).astype(int) - image.convert("RGB")).max() <= 1
    several = pillow_heif.HeifFile()
    several.add_from_pillow(Image.new("RGB", (64, 64)))
    several.add_from_pillow(image)
    several.save(buffer := io.BytesIO(), primary_index=1, **LOSSLESS)
    assert np.abs(decode(buffer.getvalue()).astype(int) - image.convert("RGB")).max() <= 1


def test_heif_of_ten_bits():
    deep = RGB.astype(np.uint16) * 257
    file = pillow_heif.from_bytes("RGB;16", (48, 32), deep.tobytes())
    file.save(buffer := io.BytesIO(), **LOSSLESS)
    assert pillow_heif.open_heif(buffer).info["bit_depth"] == 10
    assert np.abs(decode(buffer.getvalue()).astype(int) - RGB).max() <= 1


def exif_data() -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", 1
    return exif.tobytes()


DAMAGED_EXIF = {
    "other data": b"Exif\0\0junk",
    "cut in the header": exif_data()[:8],
    "cut before the offset": exif_data()[:11],
    "offset out of the file": exif_data()[:10] + b"\x7f" + exif_data()[11:],
    "a count of all": exif_data().replace(b"\0\x02\x01\x0f", b"\xff\xff\x01\x0f"),
    "a tag of no type": exif_data().replace(b"\x01\x12\0\x03", b"\x01\x12\xff\xff"),
    "an orientation of many": exif_data().replace(b"\x01\x12\0\x03\0\0\0\x01", b"\x01\x12\0\x03\0\0\0\x09"),
    "an orientation in letters": exif_data().replace(b"\x01\x12\0\x03", b"\x01\x12\0\x02"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["PNG", "WEBP", "JPEG", "HEIF"])
@pytest.mark.parametrize("exif", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
def test_damaged_exif_data_are_passed_over(exif, name):
    options = {"HEIF": LOSSLESS, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(name, {})
    data = encode(Image.fromarray(RGB), name, exif=exif, **options)
    assert np.allclose(decode(data), RGB, atol=3 if name == "JPEG" else 0)


RAMP = np.linspace(0, 1, 32 * 48).reshape(32, 48)


def tiff_of_twelve_bits(values: np.ndarray) -> bytes:
    """A grey TIFF, which Pillow reads and does not write."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(int)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = packed.astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def wide_grey(values: np.ndarray, name: str = "TIFF") -> bytes:
    return encode(Image.fromarray(values), name)


SIXTEEN_BITS = (RAMP * 65535).astype(np.uint16)
DEPTH = (0.3 + RAMP * 7.9).astype(np.float32)
HOUNSFIELD = (RAMP * 4000).astype(np.int32) - 1000
WIDE_GREY = {
    "16 bits, PNG": (wide_grey(SIXTEEN_BITS, "PNG"), SIXTEEN_BITS / 257),
    "16 bits, TIFF": (wide_grey(SIXTEEN_BITS), SIXTEEN_BITS / 257),
    "16 bits, TIFF, other end first": (wide_grey(SIXTEEN_BITS.astype(">u2")), SIXTEEN_BITS / 257),
    "16 bits, PGM": (b"P5 48 32 65535\n" + SIXTEEN_BITS.astype(">u2").tobytes(), SIXTEEN_BITS / 257),
    "16 bits, dark": (wide_grey(SIXTEEN_BITS // 200, "PNG"), SIXTEEN_BITS // 200 / 257),
    "12 bits": (tiff_of_twelve_bits(SIXTEEN_BITS >> 4), (SIXTEEN_BITS >> 4) / 4095 * 255),
    "floats to 1": (wide_grey((RAMP * 0.5).astype(np.float32)), RAMP * 0.5 * 255),
    "whole floats to 255": (wide_grey(np.rint(RAMP * 200).astype(np.float32)), RAMP * 200),
    "metres": (wide_grey(DEPTH), DEPTH / DEPTH.max() * 255),
    "whole floats above 255": (wide_grey(np.rint(RAMP * 3000).astype(np.float32)), np.rint(RAMP * 3000) / 3000 * 255),
    "32-bit integers to 255": (wide_grey((RAMP * 200).astype(np.int32)), (RAMP * 200).astype(int)),
    "32-bit integers of 16 bits": (wide_grey(SIXTEEN_BITS.astype(np.int32) // 2), SIXTEEN_BITS // 2 / 257),
    "32-bit integers": (wide_grey((RAMP * 1e6).astype(np.int32)), (RAMP * 1e6).astype(int) / 1e6 * 255),
    "negative integers": (wide_grey(HOUNSFIELD), (HOUNSFIELD + 1000) / 4000 * 255),
    "negative floats": (wide_grey((RAMP * 3 - 1).astype(np.float32)), RAMP * 255),
    "all the same": (wide_grey(np.full((4, 4), 70000, np.int32)), np.full((4, 4), 255)),
    "all below 0": (wide_grey(np.full((4, 4), -5, np.int32)), np.full((4, 4), 0)),
}


@pytest.mark.parametrize(("data", "expected"), WIDE_GREY.values(), ids=WIDE_GREY)
def test_grey_of_many_bits_is_scaled(data, expected):
    grey = decode(data)
    assert (grey == grey[:, :, :1]).all()
    assert np.abs(grey[:, :, 0] - expected).max() <= 0.501


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_grey_of_no_numbers(value):
    values = RAMP.astype(np.float32)
    values[3, 4] = value
    with pytest.raises(MediaError, match=r"^The image has infinite or NaN values; replace them"):
        decode(wide_grey(values))


def test_colours_of_sixteen_bits():
    """Pillow takes the upper half of the bits."""
    header = struct.pack(">IIBBBBB", 48, 32, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in (RGB.astype(">u2") * 257).reshape(32, -1))
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    assert np.array_equal(decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)), RGB)


def transparent(mode: str) -> bytes:
    rgba = Image.fromarray(np.dstack([RGB, np.linspace(0, 255, RGB[:, :, 0].size).reshape(32, 48).astype(np.uint8)]))
    if mode == "RGBA":
        return encode(rgba)
    if mode == "LA":
        return encode(rgba.convert("LA"))
    if mode == "palette":
        palette = rgba.convert("RGB").quantize(16)
        return encode(palette, transparency=bytes(range(0, 256, 16)))
    if mode == "HEIF":
        return encode(rgba, "HEIF", **LOSSLESS)
    image = Image.fromarray(RGB // 64 * 64)
    image = image.convert("L") if mode == "L" else image.quantize(16)
    return encode(image, transparency=image.getpixel((0, 0)))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette", "P", "L", "HEIF"])
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (10, 200, 30)])
def test_transparency_is_blended_over_a_colour_that_is_asked_for(mode, background):
    with Image.open(io.BytesIO(data := transparent(mode))) as image:
        expected = np.asarray(convert_image_mode(image, "RGB", background))
        dropped = np.asarray(image.convert("RGB"))
    assert not np.array_equal(expected, dropped)
    assert np.array_equal(decode(data, background=background), expected)
    assert np.array_equal(decode(data), dropped)


def test_a_transparent_colour_of_rgb_stays_as_vllm_leaves_it():
    data = encode(Image.fromarray(RGB), transparency=tuple(RGB[0, 0].tolist()))
    with Image.open(io.BytesIO(data)) as image:
        assert image.has_transparency_data
        assert convert_image_mode(image, "RGB", (9, 8, 7)) is image
    assert np.array_equal(decode(data, background=(9, 8, 7)), RGB)


def test_transparency_of_grey_of_sixteen_bits():
    values = np.array([[1000, 2000], [2001, 65535]], np.uint16)
    data = encode(Image.fromarray(values), transparency=2000)
    assert decode(data, background=(9, 8, 7)).tolist() == [[[4] * 3, [9, 8, 7]], [[8] * 3, [255] * 3]]
    assert decode(data)[0, 1].tolist() == [8] * 3


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", encode(Image.fromarray(RGB)))
    return buffer.getvalue()


NOISE = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
REFUSED = {
    "empty": (b"", "The image is damaged, or in a format that is not supported."),
    "noise": (bytes(range(128, 256)), "The image is damaged, or in a format that is not supported."),
    "cut off": (NOISE[:-2000], "The image is cut off."),
    "HEIC, cut off": (encode(Image.fromarray(RGB), "HEIF")[:-50], "The image is damaged, or in a format"),
    "text": (b"hello", "The image is plain text, not an image file"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", r"The image is a web page \(HTML\), not an image"),
    "drawing": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', r"The image is a drawing \(SVG\), not an image file"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "The image is a PDF document, not an image file"),
    "archive": (zip_file(), r"The image is an archive \(ZIP\), not an image file"),
    "video": (encode_clip(smooth_frames(2, 32, 48)), r"The image is a video \(MP4\), not an image file"),
    "format that is not let in": (
        encode(Image.fromarray(RGB).convert("L"), "EPS"),
        "The image is a PostScript document",
    ),
}


@pytest.mark.parametrize(("data", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_an_image(data, sentence):
    with pytest.raises(MediaError, match=f"^{sentence}"):
        decode(data)


def test_pixels_are_counted_before_they_are_decoded():
    """Three kilobytes that would be a gigabyte."""
    data = encode(Image.new("1", (20_000, 20_000)))
    with pytest.raises(MediaError, match=r"^The image has 20000x20000 = 400000000 pixels; the limit is"):
        decode(data, max_pixels=178_956_970)


def test_pixels_of_heif_are_counted_before_they_are_decoded(monkeypatch):
    data = encode(Image.new("RGB", (640, 480)), "HEIF")
    monkeypatch.setattr(pillow_heif.HeifImageFile, "load", lambda image: pytest.fail("It was decoded."))
    with pytest.raises(
        MediaError, match=r"^The image has 640x480 = 307200 pixels; the limit is 300000 \(VLLM_MAX_IMAGE_PIXELS\)\.$"
    ):
        decode(data, max_pixels=300_000)


def test_pixels_are_counted_again_when_they_are_decoded(monkeypatch):
    """A HEIF file may say that it is smaller than it is."""
    load = pillow_heif.HeifImageFile.load

    def load_more(image):
        load(image)
        image.im = image.im.resize((640, 480))
        image._size = 640, 480

    monkeypatch.setattr(pillow_heif.HeifImageFile, "load", load_more)
    with pytest.raises(
        MediaError, match=r"^The image has 640x480 = 307200 pixels; the limit is 300000 \(VLLM_MAX_IMAGE_PIXELS\)\.$"
    ):
        decode(encode(Image.new("RGB", (64, 48)), "HEIF"), max_pixels=300_000)


def test_only_a_worker_loads_the_decoder_of_heif_and_lifts_the_limit_of_pillow():
    script = """
import sys
from PIL import Image
limit = Image.MAX_IMAGE_PIXELS
import vllm_videollava.decoding.pool, vllm_videollava.decoding.pixels, vllm_videollava.decoding.rgb
assert "pillow_heif" not in sys.modules and Image.MAX_IMAGE_PIXELS == limit
import vllm_videollava.decoding.image
assert "pillow_heif" in sys.modules and Image.MAX_IMAGE_PIXELS is None
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_narrow_image():
    assert decode(encode(Image.new("L", (640, 10)))).shape == (10, 640, 3)
    with pytest.raises(
        MediaError, match=r"^The image of 641x10 pixels is too narrow; the longer side may be at most 64 times"
    ):
        decode(encode(Image.new("L", (641, 10))))
