"""Pixels are those of the original's and of transformers' transforms, to the rounding, at any size."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import VideoLlavaImageProcessor

from helpers.clips import smooth_frames
from original.pixels import original_image, original_video
from vllm_videollava.decoding.pixels import frame_pixels, image_pixels, prepare_image

SIZES = [(224, 224), (225, 224), (360, 640), (640, 360), (100, 37), (37, 100), (17, 17), (1, 1), (7, 300), (449, 448)]
# Where floating point makes the longer side of a video one less, and where the crop starts at half a pixel.
SIZES += [(28, 122), (61, 488), (100, 105), (107, 100), (106, 100)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_image_of_the_original(height, width):
    rgb = smooth_frames(1, height, width)[0]
    assert_rounded(image_pixels(rgb, 224, original=True), original_image(rgb, 224))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_video_of_the_original(height, width):
    frame = smooth_frames(1, height, width)[0]
    assert_rounded(frame_pixels(frame, 224, original=True), original_video(frame[None], 224)[0])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_image_of_transformers(height, width):
    image = Image.fromarray(smooth_frames(1, height, width)[0])
    processor = VideoLlavaImageProcessor(do_rescale=False, do_normalize=False)
    expected = processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values_images"][0]
    for pixels in (image_pixels, frame_pixels):
        assert np.array_equal(pixels(np.asarray(image), 224, original=False).transpose(2, 0, 1), expected)


@pytest.mark.parametrize("original", [True, False])
def test_pixels_that_are_ready_stay_as_they_are(original):
    """A worker makes a clip's pixels, and the processor does not change them."""
    pixels = frame_pixels(smooth_frames(1, 360, 640)[0], 224, original=original)
    assert np.array_equal(frame_pixels(pixels, 224, original=original), pixels)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_padding_puts_the_image_in_the_middle_of_the_mean_colour(height, width, original):
    rgb = smooth_frames(1, height, width)[0]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 3), np.uint8) + np.array([122, 116, 104], np.uint8)
    square[top : top + height, left : left + width] = rgb
    cropped, padded = prepare_image(rgb, 56, original=original)
    assert np.array_equal(padded, image_pixels(rgb, 56, original=original, pad=True))
    assert np.array_equal(cropped, image_pixels(rgb, 56, original=original))
    if original:
        assert_rounded(padded, original_image(square, 56))
    else:
        assert np.array_equal(padded, image_pixels(square, 56, original=False))


PANORAMAS = [(3000, 90), (90, 3000), (50, 3200), (3200, 51), (400, 1999), (1999, 401), (299, 300), (64, 1), (1, 64)]


@pytest.mark.parametrize("size", [224, 56, 48, 45])
@pytest.mark.parametrize(("height", "width"), PANORAMAS)
def test_padding_of_a_panorama_is_that_of_the_whole_square(height, width, size):
    """Bit for bit, at hard edges too."""
    rgb = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (height, width, 3))
    side = max(height, width)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(Image.fromarray(rgb), ((side - width) // 2, (side - height) // 2))
    expected = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
    assert np.array_equal(image_pixels(rgb, size, original=False, pad=True), expected)


@pytest.mark.parametrize(("height", "width"), [(500, 30_000), (30_000, 500), (1500, 24_000), (20_000, 1000)])
def test_panoramas_take_little_memory(height, width):
    """With no more than 400 MiB of data beside the picture; a square of 20000x20000 would be 1200."""
    script = f"""
import os, resource
import numpy as np
from vllm_videollava.decoding.pixels import prepare_image
rgb = np.full(({height}, {width}, 3), 200, np.uint8)
pages = int(open("/proc/self/statm").read().split()[5])
resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + (400 << 20),) * 2)
cropped, padded = prepare_image(rgb, 224, original=False)
assert (cropped == 200).all() and (padded[112, 112] > 180).all() and (padded[0, 0] == [122, 116, 104]).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def assert_rounded(pixels: np.ndarray, expected: torch.Tensor) -> None:
    assert pixels.dtype == np.uint8
    pixels = torch.from_numpy(pixels).movedim(-1, 0)
    assert pixels.shape == expected.shape
    assert (pixels - expected.clamp(0, 255)).abs().max() <= 0.501
