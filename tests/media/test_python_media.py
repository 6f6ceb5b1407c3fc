"""However media are handed over, the same image and the same frames come out, or one clear sentence."""

import errno
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.image import rgba_to_rgb
from vllm.multimodal.utils import fetch_image, fetch_video

from helpers.clips import decode_all, encode_clip, smooth_frames
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.decoding.pixels import prepare_image, prepare_video
from vllm_videollava.decoding.sampling import sample_indices
from vllm_videollava.media.python_media import VideoLlavaDataParser, count_media, to_frames, to_rgb

SIZE = 64


@pytest.fixture(scope="module")
def parser():
    import vllm_videollava

    vllm_videollava.register()
    return VideoLlavaDataParser(PixelFormat(8, SIZE, SIZE, original=True))


@pytest.fixture(scope="module")
def parse(parser):
    def parse(modality, data):
        items = parser.parse_mm_data({modality: data})[modality]
        # As vLLM does with what its cache does not have.
        items = parser.parse_mm_data({modality: items.get_all()})[modality]
        return [np.asarray(items.get(index)) for index in range(len(items))]

    return parse


def is_image_of(result: np.ndarray, rgb: np.ndarray) -> bool:
    return np.array_equal(result, prepare_image(rgb, SIZE, original=True))


def is_clip_of(result: np.ndarray, frames: np.ndarray) -> bool:
    return np.array_equal(result, prepare_video(frames, SIZE, original=True))


def encode_image(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_every_way_to_give_an_image(parse, tmp_path):
    rgb = smooth_frames(1, 30, 50)[0]
    image = Image.fromarray(rgb)
    path = tmp_path / "image.png"
    path.write_bytes(encode_image(image))
    for way in (image, rgb, torch.from_numpy(rgb), rgb.transpose(2, 0, 1)):
        (result,) = parse("image", way)
        assert is_image_of(result, rgb)
    (result,) = parse("image", path)
    assert is_image_of(result, rgb)
    assert len(parse("image", [image, path])) == 2
    assert len(parse("image", np.stack([rgb, rgb, rgb]))) == 3


def test_every_way_to_give_a_video(parse, tmp_path):
    frames = decode_all(data := encode_clip(smooth_frames(20, 64, 96)))
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    pictures = [Image.fromarray(frame) for frame in frames]
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    expected = frames[np.linspace(0, 19, 8, dtype=int)]
    for way in (frames, channels_first, list(frames), pictures, (frames, {"fps": 10})):
        (result,) = parse("video", way)
        assert np.array_equal(result, expected[:, :, 16:80])
    (result,) = parse("video", path)
    assert np.array_equal(result, expected[:, :, 16:80])
    assert len(parse("video", [frames, path, pictures])) == 3
    assert len(parse("video", np.stack([frames, frames]))) == 2


MODES = {"L": 200, "LA": (200, 10), "RGBA": (10, 200, 30, 40), "CMYK": (10, 20, 30, 40), "1": 1, "P": 3}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_as_pillow_does_it(mode):
    image = Image.new(mode, (20, 10), MODES[mode])
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_transparency_of_a_palette_is_dropped(parse, tmp_path):
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0, 0, 255, 0])
    path = tmp_path / "palette.png"
    image.save(path, transparency=0)
    (result,) = parse("image", Image.open(path))
    assert (result[0] == (255, 0, 0)).all()


def test_a_rotated_photograph_is_upright(parse, tmp_path):
    image = Image.fromarray(smooth_frames(1, 32, 48)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees to the right.
    path = tmp_path / "photo.png"
    image.save(path, exif=exif)
    upright = np.rot90(np.asarray(image), -1)
    (result,) = parse("image", Image.open(path))
    assert is_image_of(result, upright)
    (result,) = parse("image", path)
    assert np.array_equal(result, prepare_image(upright, SIZE, original=True))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 7, 8, 9, 30])
def test_frames_are_spread_from_first_to_last(num_frames):
    indices = sample_indices(num_frames, 8)
    assert indices.tolist() == [int(step * (num_frames - 1) / 7) for step in range(8)]


RGB = smooth_frames(12, 40, 60)
SAMPLED = RGB[np.linspace(0, 11, 8, dtype=int)]


class DecordArray:
    """As decord returns its frames."""

    shape = RGB.shape

    def asnumpy(self):
        return RGB


class Unreadable(Image.Image):
    mode, size = "RGB", (8, 8)

    def load(self):
        raise struct.error("unpack requires a buffer of 12 bytes")


def tensor(values=RGB, dtype=torch.uint8) -> torch.Tensor:
    return torch.from_numpy(values).to(dtype)


ALPHA = np.concatenate([RGB, RGB[..., :1] // 2], axis=-1)
CLIPS = {
    # As qwen-vl-utils resizes them.
    "float32, channels first": tensor(dtype=torch.float32).permute(0, 3, 1, 2),
    "float16": tensor(dtype=torch.float16),
    "bfloat16": tensor(dtype=torch.bfloat16),
    "float64 array": RGB.astype(np.float64),
    "float16 array": RGB.astype(np.float16),
    "to 1": RGB.astype(np.float32) / 255,
    "to 1, float64, channels first": torch.from_numpy(RGB / 255).permute(0, 3, 1, 2),
    "to 1, float16": (RGB / 255).astype(np.float16),
    "int64": RGB.astype(np.int64),
    "int16 tensor": tensor(dtype=torch.int16),
    "uint16": RGB.astype(np.uint16),
    "with gradients": (tensor(dtype=torch.float32) / 255).requires_grad_(),
    "alpha": ALPHA,
    "alpha, channels first, to 1": ALPHA.transpose(0, 3, 1, 2) / 255,
    "negative strides": RGB[::-1, ::-1, ::-1, ::-1][::-1, ::-1, ::-1, ::-1],
    "a subclass of an array": RGB.view(np.recarray),
    "decord's array": DecordArray(),
    "metadata": (RGB, {"fps": 10.0, "total_num_frames": 12}),
    "no metadata": (tensor(), None),
    "metadata of a list of images": ([Image.fromarray(frame) for frame in RGB], {"fps": 10.0}),
    "frames and rate, in a list": [(tensor().permute(0, 3, 1, 2), 2.0)],
    "frames and times": (RGB, [0.1 * index for index in range(12)]),
    "frames, sound and rates of torchvision": (tensor(), torch.zeros(2, 48000), {"video_fps": 10.0}),
    "list of arrays": list(RGB),
    "list of float tensors": list(tensor(dtype=torch.float32).permute(0, 3, 1, 2) / 255),
    "tuple of arrays": tuple(RGB),
    "tuple of images": tuple(Image.fromarray(frame) for frame in RGB),
    "list in a list": [list(RGB)],
    "tuple in a list": [tuple(RGB)],
    "array in a list": [RGB],
    "one clip of a batch": RGB[None],
    "images and arrays": [Image.fromarray(frame) if index % 2 else frame for index, frame in enumerate(RGB)],
    "images, one with alpha": [Image.fromarray(ALPHA[0]), *(Image.fromarray(frame) for frame in RGB[1:])],
}


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_clips_of_other_libraries(parse, clip):
    (result,) = parse("video", clip)
    assert result.dtype == np.uint8
    # Of floats of 16 bits, 0 to 1 has steps of 2 ** -11 at its end.
    assert is_clip_of(result, SAMPLED)


GREY = RGB[..., 1]
GREY_CLIPS = {
    "no channels": GREY,
    "a channel": GREY[..., None],
    "a channel, first": torch.from_numpy(GREY)[:, None],
    "list": list(GREY),
    "three in a list": [GREY[0], GREY[5], GREY[11]],
    "to 1": GREY / 255,
    "images": [Image.fromarray(frame) for frame in GREY],
}


@pytest.mark.parametrize("clip", GREY_CLIPS.values(), ids=GREY_CLIPS)
def test_grey_clips(parse, clip):
    (result,) = parse("video", clip)
    expected = GREY[[0, 5, 11]] if len(clip) == 3 else GREY
    assert is_clip_of(result, expected[np.linspace(0, len(expected) - 1, 8, dtype=int)][..., None].repeat(3, -1))


BLACK_AND_WHITE = np.random.default_rng(0).integers(0, 2, (8, 16, 24, 3))
RULES = {
    "bool: True is white": (BLACK_AND_WHITE.astype(bool), BLACK_AND_WHITE * 255),
    "floats of 0 and 1: 1 is white": (BLACK_AND_WHITE.astype(np.float32), BLACK_AND_WHITE * 255),
    "integers of 0 and 1: nearly black": (BLACK_AND_WHITE, BLACK_AND_WHITE),
    "floats of 0: black": (np.zeros((8, 16, 24, 3), np.float32), np.zeros((8, 16, 24, 3))),
    "floats of 1: white": (np.ones((8, 16, 24, 3)), np.full((8, 16, 24, 3), 255)),
    "a dark frame before bright ones": (
        BLACK_AND_WHITE * np.array([1.0] + [255] * 7).reshape(8, 1, 1, 1),
        BLACK_AND_WHITE * np.array([1] + [255] * 7).reshape(8, 1, 1, 1),
    ),
    "a dark frame before bright ones, in a list": (
        list(BLACK_AND_WHITE * np.array([1.0] + [255] * 7).reshape(8, 1, 1, 1)),
        BLACK_AND_WHITE * np.array([1] + [255] * 7).reshape(8, 1, 1, 1),
    ),
    "depth in metres, over all frames": (
        [Image.fromarray(np.full((16, 24), 0.5 + index, np.float32)) for index in range(8)],
        np.full((8, 16, 24, 3), ((0.5 + np.arange(8)) / 7.5 * 255).round().reshape(8, 1, 1, 1)),
    ),
    "both ends are channels: the last": (RGB[:8, :3], RGB[:8, :3]),
    "3 before 4": (RGB[:8, :, :4].transpose(0, 3, 1, 2), RGB[:8, :, :4]),
    "three frames": (RGB[:3], RGB[[0, 0, 0, 0, 1, 1, 1, 2]]),
}


@pytest.mark.parametrize(("clip", "expected"), RULES.values(), ids=RULES)
def test_what_may_mean_two_things(parse, clip, expected):
    (result,) = parse("video", clip)
    sampled = expected[np.linspace(0, len(expected) - 1, 8, dtype=int)]
    assert is_clip_of(result, sampled)


IMAGES = {
    "float": (RGB[0].astype(np.float32), RGB[0]),
    "to 1, channels first": (tensor(RGB[0], torch.float32).permute(2, 0, 1) / 255, RGB[0]),
    "bfloat16": (tensor(RGB[0], torch.bfloat16), RGB[0]),
    "alpha": (ALPHA[0], RGB[0]),
    "alpha, channels first": (torch.from_numpy(ALPHA[0]).permute(2, 0, 1), RGB[0]),
    "grey": (GREY[0], GREY[0][..., None].repeat(3, -1)),
    "grey with a channel": (torch.from_numpy(GREY[0])[None], GREY[0][..., None].repeat(3, -1)),
    "in a tuple": ((RGB[0],), RGB[0]),
    "one of a batch": (tensor(RGB[:1]).permute(0, 3, 1, 2), RGB[0]),
    "premultiplied alpha": (Image.fromarray(RGB[0]).convert("RGBA").convert("RGBa"), RGB[0]),
    "premultiplied grey": (Image.fromarray(GREY[0]).convert("LA").convert("La"), GREY[0][..., None].repeat(3, -1)),
    "16 bits": (Image.fromarray(GREY[0].astype(np.uint16) * 257), GREY[0][..., None].repeat(3, -1)),
    "16 bits in 32": (
        Image.fromarray(GREY[0].astype(np.int32) * 257 + 1),
        GREY[0][..., None].repeat(3, -1),
    ),
    "floats": (Image.fromarray(GREY[0].astype(np.float32) / 255), GREY[0][..., None].repeat(3, -1)),
    "8 bits in floats": (Image.fromarray(GREY[0]).convert("F"), GREY[0][..., None].repeat(3, -1)),
}


@pytest.mark.parametrize(("image", "expected"), IMAGES.values(), ids=IMAGES)
def test_images_of_other_libraries(parse, image, expected):
    (result,) = parse("image", image)
    assert is_image_of(result, expected)


def test_equal_pixels_have_one_hash_and_others_another(parser):
    """So that vLLM's cache knows them again."""

    def hashes(modality, ways):
        items = [parser.parse_mm_data({modality: way})[modality].get_item_for_hash(0) for way in ways]
        return {MultiModalHasher.hash_kwargs("sha256", medium=item) for item in items}

    assert len(hashes("video", CLIPS.values())) == 1
    assert len(hashes("image", [RGB[0], Image.fromarray(RGB[0]), tensor(RGB[0], torch.float32), [ALPHA[0]]])) == 1
    others = [RGB, RGB[::-1], RGB[:, ::-1], RGB[:, :20], RGB.reshape(12, 60, 40, 3), np.bitwise_not(RGB)]
    assert len(hashes("video", others)) == len(others)
    assert len(hashes("image", RGB)) == len(RGB)


def test_what_vllm_loads_with_other_options_is_something_else(parser, tmp_path):
    """Its objects keep the bytes of the file, which are the same whatever the options are."""
    image, clip = tmp_path / "image.png", tmp_path / "clip.mp4"
    Image.fromarray(ALPHA[0]).save(image)
    clip.write_bytes(encode_clip(smooth_frames(40, 64, 64)))
    images = [fetch_image(image.as_uri(), {"rgba_background_color": (level, 0, 0)}) for level in (0, 255)]
    clips = [fetch_video(clip.as_uri(), {"num_frames": number}) for number in (8, 3, 32)]
    for modality, ways in (("image", images), ("video", clips)):
        items = [parser.parse_mm_data({modality: way})[modality] for way in ways]
        hashes = {MultiModalHasher.hash_kwargs("sha256", medium=item.get_item_for_hash(0)) for item in items}
        assert len(hashes) == len({np.asarray(item.get(0)).tobytes() for item in items}) == len(ways)


def test_grey_pictures_as_high_as_there_are_channels():
    for height in (1, 3, 4):
        grey = np.arange(5 * height, dtype=np.uint8).reshape(height, 5)
        assert np.array_equal(to_rgb(grey), grey[..., None].repeat(3, -1))
        assert np.array_equal(to_frames([grey] * 2), np.stack([grey[..., None].repeat(3, -1)] * 2))


def test_frames_of_several_dtypes_keep_their_meaning():
    dark, half = np.ones((4, 8, 3), np.uint8), np.full((4, 8, 3), 0.5, np.float32)
    for white in (np.ones((4, 8, 3), bool), np.ones((4, 8, 3), np.float64), np.full((4, 8, 3), 255, np.int64)):
        assert to_frames([dark, half, white])[:, 0, 0, 0].tolist() == [1, 128, 255]
    # Integers share their range, as do floats.
    assert to_frames([dark, dark.astype(np.int64) * 200])[:, 0, 0, 0].tolist() == [1, 200]
    assert to_frames([half * 2, half.astype(np.float64) * 400])[:, 0, 0, 0].tolist() == [1, 200]


@pytest.mark.parametrize("mode", ["F", "I", "L"])
def test_rotated_pictures_are_upright_in_a_clip_too(mode):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    values = np.arange(24).reshape(4, 6) * 10
    Image.fromarray(values.astype({"F": np.float32, "I": np.int32, "L": np.uint8}[mode])).save(
        buffer, "TIFF", exif=exif
    )
    picture = Image.open(buffer)
    assert picture.mode == mode
    assert to_rgb(picture).shape == (6, 4, 3)
    assert np.array_equal(to_frames([picture, picture]), np.stack([to_rgb(picture)] * 2))


class FailingArray:
    """As CuPy's, which does not convert by itself."""

    shape = (8, 20, 30, 3)

    def __array__(self, *_args, **_options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


def test_counting_does_not_convert():
    for video in (FailingArray(), (FailingArray(), {"fps": 30})):
        assert count_media({"video": video}) == {"video": 1}


def test_transparency_over_the_colour_that_the_engine_was_started_with(parser, monkeypatch):
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    image = Image.fromarray(rgba)
    expected = np.asarray(rgba_to_rgb(image, (10, 200, 30)))
    monkeypatch.setattr(parser, "_background", (10, 200, 30))
    for way in (image, rgba, rgba.transpose(2, 0, 1), torch.from_numpy(rgba) / 255, image.convert("RGBa")):
        items = parser.parse_mm_data({"image": way, "video": [way, way] if way is image else rgba[None]})
        rgb = to_rgb(way, (10, 200, 30))
        assert np.abs(rgb.astype(int) - expected).max() <= (1 if getattr(way, "mode", "") == "RGBa" else 0)
        assert is_image_of(items["image"].get(0), rgb)
        assert is_clip_of(items["video"].get(0), expected[None].repeat(8, 0))


@pytest.mark.parametrize(
    "name", [b"latin\xe9.mp4", b"\xff\xfe", "日本 语.mp4".encode(), b"%41?#&= .mp4", b"~", b"new\nline"]
)
def test_a_path_of_any_bytes(parse, tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encode_clip(RGB))
    (clip,) = parse("video", path)
    assert clip.shape == (8, SIZE, SIZE, 3)
    path.write_bytes(encode_image(Image.fromarray(RGB[0])))
    (image,) = parse("image", path)
    assert is_image_of(image, RGB[0])


def test_paths_that_cannot_be_read(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("empty.mp4").write_bytes(b"")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    refused = {
        "clip.mp4": "The video file 'clip.mp4' cannot be read: No such file or directory.",
        "~/clip.mp4": "The video file '~/clip.mp4' cannot be read: No such file or directory.",
        "folder": "The video file 'folder' cannot be read: it is not a regular file.",
        "pipe": "The video file 'pipe' cannot be read: it is not a regular file.",
        "empty.mp4": "The video is empty.",
        "loop": "The video file 'loop' cannot be read: Too many levels of symbolic links.",
        "a\0b": "The video file 'a\\x00b' cannot be read: embedded null byte.",
        os.fsdecode(b"\xe9"): "The video file '\\udce9' cannot be read: No such file or directory.",
    }
    for name, sentence in refused.items():
        with pytest.raises(MediaError) as caught:
            parse("video", Path(name))
        assert str(caught.value) == sentence
    with pytest.raises(MediaError, match=r"^Video 2: The video file 'b' cannot be read: No such file or directory\.$"):
        parse("video", [RGB, Path("b")])

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    Path("closed.png").write_bytes(b"x")
    with pytest.raises(MediaError, match=r"^The image file 'closed\.png' cannot be read: Permission denied\.$"):
        parse("image", Path("closed.png"))


REFUSED = {
    "odd shape": ("image", np.zeros((8, 8, 5), np.uint8), r"The image array has shape \(8, 8, 5\)"),
    "number": ("image", 7, "^The image cannot be of type int; it must be a PIL image, an array, a tensor or a pathlib"),
    "string": ("image", "/etc/passwd", "The image cannot be of type str"),
    "string for a video": ("video", "/etc/passwd", "The video cannot be of type str"),
    "narrow image": ("image", Image.new("RGB", (1, 6000)), "of 1x6000 pixels is too narrow; the longer side"),
    "narrow video": ("video", np.zeros((8, 1, 6000, 3), np.uint8), "of 6000x1 pixels is too narrow"),
    "no frames": ("video", np.zeros((0, 8, 8, 3), np.uint8), r"The video array has shape \(0, 8, 8, 3\)"),
    "one picture": ("video", np.zeros((8, 8, 3), np.uint8), r"The video array has shape \(8, 8, 3\)"),
    "one grey picture": ("video", np.zeros((3, 8, 9), np.uint8), r"^The video array has shape \(3, 8, 9\); it must be"),
    "URL": ("video", "https://example.com/clip.mp4", "^The video cannot be of type str; it must be a list of images"),
    "list of strings": ("video", ["a.mp4", "b.mp4"], "^Video 1: The video cannot be of type str"),
    "frames as strings": ("video", [["a.jpg", "b.jpg"]], "^A frame cannot be of type str; it must be a PIL image"),
    "frames as paths": ("video", [[Path("a.jpg"), Path("b.jpg")]], r"^A frame cannot be of type pathlib\.PosixPath"),
    "bytes": ("video", encode_clip(RGB), "^The video cannot be of type bytes"),
    "bytes of an image": ("image", encode_image(Image.fromarray(RGB[0])), "^The image cannot be of type bytes"),
    "dict": ("video", {"frames": RGB}, "^The video cannot be of type dict"),
    "dict of embeddings": ("image", {"image_embeds": torch.zeros(1, 4, 8)}, "^The image cannot be of type dict"),
    "set": ("image", {1, 2}, "^The image cannot be of type set"),
    "generator": ("video", (frame for frame in RGB), "^The video cannot be of type generator"),
    "frames of torchvision's reader": ("video", [[{"data": RGB[0], "pts": 0.0}]], "^A frame cannot be of type dict"),
    "lists of numbers": ("video", RGB[:2, :4, :4].tolist(), "^Video 1: A frame cannot be of type list"),
    "image for a video": ("video", Image.new("RGB", (8, 8)), r"^The video cannot be of type PIL\.Image\.Image"),
    "no list": ("video", [[]], r"^The video has no frames\.$"),
    "normalised": ("video", (RGB / 127.5 - 1), "^The video array has float64 values from -1 to 1; they must be whole"),
    "normalised tensor": ("image", tensor(RGB[0], torch.float32) / 100 - 1, "^The image array has float32 values from"),
    "not whole": (
        "video",
        tensor(dtype=torch.float32) * 0.37,
        r"^The video array has float32 values from 0 to 94\.\d+ that are not all whole numbers; they must",
    ),
    "NaN": (
        "video",
        np.full((8, 4, 4, 3), np.nan),
        "^The video array has infinite or NaN values; replace them",
    ),
    "infinite": (
        "image",
        np.full((4, 4, 3), np.inf),
        "^The image array has infinite or NaN values; replace them",
    ),
    "16 bits": ("video", RGB.astype(np.uint16) * 257, "^The video array has uint16 values from 0 to 6"),
    "negative": ("video", RGB.astype(np.int64) - 300, "^The video array has int64 values from -300 to -"),
    "list of floats": ("video", list(RGB / 100.0), r"^A frame array has float64 values from 0 to 2\.5\d* that are not"),
    "complex": ("image", np.zeros((8, 8, 3), complex), "^The image array has dtype complex128; it must have integers"),
    "objects": ("video", np.full((8, 8, 8, 3), None), "^The video array has dtype object"),
    "letters": ("image", np.full((8, 8, 3), "a"), "^The image array has dtype <U1"),
    "no data": (
        "video",
        torch.empty(8, 3, 8, 8, device="meta"),
        "^The video tensor of dtype torch.float32, layout torch.strided and device meta cannot be read",
    ),
    "sparse": (
        "image",
        torch.zeros(8, 8, 3).to_sparse(),
        "^The image tensor of dtype torch.float32, layout torch.sparse_coo and device cpu cannot",
    ),
    "quantised": (
        "image",
        torch.quantize_per_tensor(torch.zeros(8, 8, 3), 1.0, 0, torch.quint8),
        "^The image tensor of dtype torch.quint8, layout torch.strided and device cpu cannot be read",
    ),
    "channels before time": (
        "video",
        np.zeros((3, 8, 20, 30)),
        r"^The video array has shape \(3, 8, 20, 30\); it must be",
    ),
    "array that does not convert": (
        "video",
        FailingArray(),
        r"^The video of type \S+\.FailingArray cannot be read; pass a NumPy array or a torch tensor\.$",
    ),
    "no axes": ("image", np.float64(3), r"^The image array has shape \(\); it must be \[H, W, C\]"),
    "two clips of a tuple of two": ("video", (RGB, [Path("none.mp4")]), "^Video 2: A frame cannot be of type pathlib"),
    "empty image": ("image", Image.new("RGB", (0, 0)), "^The image of 0x0 pixels is empty"),
    "damaged image": ("image", Unreadable(), r"^The image cannot be read; it is damaged, or its file is closed\.$"),
    "second of two": ("image", [RGB[0], "a.png"], "^Image 2: The image cannot be of type str"),
    "depth of frames that differ": (
        "video",
        [[Image.new("F", (8, 8)), Image.new("F", (9, 8))]],
        "all have the same size; these have 8x8 and 9x8 pixels",
    ),
    "frames that differ": ("video", [[Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]], "all have the same size"),
}


@pytest.mark.parametrize(("modality", "data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_said(parse, modality, data, message):
    with pytest.raises(ValueError, match=message):
        parse(modality, data)


def test_frames_of_a_list_and_of_an_array_agree():
    frames = smooth_frames(3, 20, 30)
    assert np.array_equal(to_frames(list(frames)), frames)


def test_media_are_counted_without_loading_them(tmp_path):
    image, frames = Image.new("RGB", (4, 4)), np.zeros((9, 4, 4, 3), np.uint8)
    missing = tmp_path / "missing"
    for data, count in ((image, 1), ([image, missing], 2), (missing, 1), (frames, 9), ([None, None], 2), ([], 0)):
        assert count_media({"image": data}) == {"image": count}
    for data, count in (([image] * 9, 1), ([frames, missing], 2), (missing, 1), (frames, 1), (frames[None], 1)):
        assert count_media({"video": data, "image": None}) == {"video": count}
