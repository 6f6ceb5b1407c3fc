"""A video sent as pictures in base64: what is sampled is decoded, once each, within the limits of videos and images."""

import base64
import io
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from helpers.clips import moving_frames
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.image import decode_image
from vllm_videollava.decoding.settings import Settings
from vllm_videollava.decoding.video import decode_picture_sequence

FRAMES = moving_frames(20, 48, 64)


def encode(frame: np.ndarray, name: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, name)
    return base64.b64encode(buffer.getvalue())


PICTURES = [encode(frame) for frame in FRAMES]


def decode(*pictures: bytes, num_frames: int = 8, max_pixels: int = 0, **settings: int) -> np.ndarray:
    file = io.BytesIO(b",".join(pictures))
    return decode_picture_sequence(file, num_frames, lambda frame: frame, Settings(**settings), max_pixels)


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_pictures_are_sampled_as_frames_are(count, num_frames):
    expected = [pixels(PICTURES[index]) for index in np.linspace(0, count - 1, num_frames, dtype=int)]
    assert np.array_equal(decode(*PICTURES[:count], num_frames=num_frames), expected)


def test_other_formats_and_modes_than_jpeg():
    pictures = [encode(FRAMES[0], "PNG"), encode(FRAMES[1, :, :, 0]), encode(FRAMES[2], "WEBP")]
    assert np.array_equal(decode(*pictures, num_frames=3), [pixels(picture) for picture in pictures])


def test_each_picture_is_decoded_once(monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "vllm_videollava.decoding.video.decode_image", lambda *args: decoded.append(args) or decode_image(*args)
    )
    decode(*PICTURES[:3])
    decode(*[PICTURES[0]] * 12)
    decode(PICTURES[0], PICTURES[1], PICTURES[0])
    assert len(decoded) == 3 + 1 + 2


def test_what_is_not_sampled_is_not_read():
    pictures = list(PICTURES)
    pictures[1] = b"@"
    assert len(decode(*pictures)) == 8


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (b"@@@@", "The image is not valid base64"),
        (PICTURES[2][:-5] + b"=" + PICTURES[2][-4:], "The image is not valid base64"),
        (base64.b64encode(b"no picture, only text"), "The image is plain text, not an image file; "),
        (base64.b64encode(bytes(100)), "The image is damaged, or in a format that is not supported."),
        (b"", "The image is damaged, or in a format that is not supported."),
        (encode(moving_frames(1, 2, 200)[0]), "The image of 200x2 pixels is too narrow"),
    ],
)
def test_what_is_not_a_picture_is_named_with_its_place(bad, sentence):
    with pytest.raises(MediaError) as error:
        decode(*PICTURES[:2], bad, num_frames=3)
    assert str(error.value).startswith(f"Picture 3 of the video: {sentence}")


def test_limits():
    with pytest.raises(
        MediaError, match=r"^The video has at least 20 frames; the limit is 19 \(VIDEO_LLAVA_MAX_FRAMES\)\.$"
    ):
        decode(*PICTURES, max_frames=19)
    assert len(decode(*PICTURES, max_frames=20)) == 8
    with pytest.raises(
        MediaError, match=r"frames of 64x48 = 3072 pixels; the limit is 3071 \(VIDEO_LLAVA_MAX_FRAME_PIXELS\)\.$"
    ):
        decode(*PICTURES, max_frame_pixels=3071)
    with pytest.raises(MediaError, match=r"64x48 = 3072 pixels; the limit is 3071 \(VLLM_MAX_IMAGE_PIXELS\)\.$"):
        decode(*PICTURES, max_pixels=3071)


def test_many_commas_cost_neither_time_nor_memory():
    commas = bytearray(b",") * 50_000_000
    start = time.process_time()
    with pytest.raises(MediaError, match=r"^The video has at least 50000001 frames"):
        decode(bytes(commas))
    assert time.process_time() - start < 2


def test_the_text_is_not_split():
    picture = PICTURES[0]
    text = io.BytesIO(b",".join([picture] + [b"AAAA"] * 200_000 + [picture]))
    tracemalloc.start()
    decode_picture_sequence(text, 2, lambda frame: frame, Settings(), 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
