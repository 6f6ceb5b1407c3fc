"""However media are handed over, the same image and the same frames come out, or one clear sentence."""

import io

import numpy as np
import pytest
import torch
from clips import decode_all, encode_clip, smooth_frames
from PIL import Image

from vllm_videollava import media_connector
from vllm_videollava.frames import sample_indices
from vllm_videollava.media import VideoLlavaDataParser, count_media, to_frames, to_rgb
from vllm_videollava.pixels import prepare_image

SIZE = 64


@pytest.fixture(scope="module")
def parse():
    import vllm_videollava

    vllm_videollava.register()
    options = {"num_frames": 8, "image_size": SIZE, "video_size": SIZE, "original": True}
    parser = VideoLlavaDataParser(8, {media_connector.NAME: options})

    def parse(modality, data):
        items = parser.parse_mm_data({modality: data})[modality]
        # As vLLM does with what its cache does not have.
        items = parser.parse_mm_data({modality: items.get_all()})[modality]
        return [np.asarray(items.get(index)) for index in range(len(items))]

    return parse


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
        assert np.array_equal(result, rgb)
    # A file comes out of the worker as pixels, cropped and padded.
    (result,) = parse("image", path)
    assert np.array_equal(result, prepare_image(rgb, SIZE, original=True))
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
        assert np.array_equal(result, expected)
    # A file's frames come out of the worker as pixels.
    (result,) = parse("video", path)
    assert np.array_equal(result, expected[:, :, 16:80])
    assert len(parse("video", [frames, path, pictures])) == 3
    assert len(parse("video", np.stack([frames, frames]))) == 2


MODES = {"L": 200, "LA": (200, 10), "RGBA": (10, 200, 30, 40), "CMYK": (10, 20, 30, 40), "1": 1, "P": 3, "I;16": 200}


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
    assert (result == (255, 0, 0)).all()


def test_a_rotated_photograph_is_upright(parse, tmp_path):
    image = Image.fromarray(smooth_frames(1, 32, 48)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees to the right.
    path = tmp_path / "photo.png"
    image.save(path, exif=exif)
    upright = np.rot90(np.asarray(image), -1)
    (result,) = parse("image", Image.open(path))
    assert np.array_equal(result, upright)
    (result,) = parse("image", path)
    assert np.array_equal(result, prepare_image(upright, SIZE, original=True))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 7, 8, 9, 30])
def test_frames_are_spread_from_first_to_last(num_frames):
    indices = sample_indices(num_frames, 8)
    assert indices.tolist() == [int(step * (num_frames - 1) / 7) for step in range(8)]


REFUSED = {
    "float image": ("image", np.zeros((8, 8, 3)), "An image array has dtype float64; uint8"),
    "odd shape": ("image", np.zeros((8, 8, 5), np.uint8), r"An image array has shape \(8, 8, 5\)"),
    "number": ("image", 7, "An image was given as int"),
    "string": ("image", "/etc/passwd", "An image was given as str"),
    "string for a video": ("video", "/etc/passwd", "A video was given as str"),
    "narrow image": ("image", Image.new("RGB", (1, 6000)), "of 1x6000 pixels is too narrow; one side"),
    "narrow video": ("video", np.zeros((8, 1, 6000, 3), np.uint8), "of 6000x1 pixels is too narrow"),
    "no frames": ("video", np.zeros((0, 8, 8, 3), np.uint8), r"A video array has shape \(0, 8, 8, 3\)"),
    "one picture": ("video", np.zeros((8, 8, 3), np.uint8), r"A video array has shape \(8, 8, 3\)"),
    "frames that differ": ("video", [[Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]], "all of one size"),
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
