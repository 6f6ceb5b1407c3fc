"""Turns images and frames into the towers' pixels: resizes, crops and rounds, as each format's own code does.

Results are uint8; the towers normalise them. Only the part that the crop keeps
is computed. Sources: the original's `processing_image.py` and
`processing_video.py` with torchvision 0.15 on tensors, and transformers'
`VideoLlavaImageProcessor`.
"""

import math

import numpy as np
from PIL import Image

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PADDING = tuple(int(mean * 255) for mean in IMAGE_MEAN)
BICUBIC_A = -0.75
"""PyTorch's constant for cubic convolution; Pillow's is -0.5."""
ROWS_AT_A_TIME = 256


class PreparedImage(np.ndarray):
    """Finished pixels of an image, uint8 `[2, size, size, 3]`: cropped and padded; each request uses one of the two."""


class PreparedVideo(np.ndarray):
    """Finished pixels of a clip, uint8 `[T, size, size, 3]`."""


def image_pixels(rgb: np.ndarray, size: int, *, original: bool, pad: bool = False) -> np.ndarray:
    """Scale the shorter side of an image to `size` and crop the centre.

    Args:
        rgb: uint8 `[H, W, 3]`.
        original: whether to do it as the original code (bicubic, not
            antialiased) or as transformers (bicubic, antialiased).
        pad: whether to put the image in the middle of a square of the mean
            colour first, as the original's benchmarks do.

    Returns:
        uint8 `[size, size, 3]`.
    """
    if not original:
        return _padded_pillow_pixels(rgb, size) if pad else _pillow_pixels(rgb, size)
    height, width, _ = rgb.shape
    if pad:
        return _sample(rgb, (size, size), size, _bicubic_taps, square=max(height, width))
    return _sample(rgb, _scaled_size(height, width, size), size, _bicubic_taps)


def prepare_image(rgb: np.ndarray, size: int, *, original: bool) -> PreparedImage:
    """Make an image's pixels both with and without padding; see `image_pixels`."""
    both = [image_pixels(rgb, size, original=original, pad=pad) for pad in (False, True)]
    return np.stack(both).view(PreparedImage)


def prepare_video(frames: np.ndarray, size: int, *, original: bool) -> PreparedVideo:
    """Make the pixels of a clip's frames, `[T, H, W, 3]`; see `frame_pixels`."""
    return np.stack([frame_pixels(frame, size, original=original) for frame in frames]).view(PreparedVideo)


def frame_pixels(frame: np.ndarray, size: int, *, original: bool) -> np.ndarray:
    """Scale the shorter side of a clip's frame to `size` and crop the centre.

    Args:
        frame: uint8 `[H, W, 3]`, RGB.
        original: whether to do it as the original code (bilinear, not
            antialiased) or as transformers (bicubic, antialiased).

    Returns:
        uint8 `[size, size, 3]`.
    """
    if not original:
        return _pillow_pixels(frame, size)
    height, width, _ = frame.shape
    # Unlike for images, the division comes first; rounding errors may then make the result one too small.
    longer = math.floor(max(height, width) / min(height, width) * size)
    return _sample(frame, (size, longer) if height <= width else (longer, size), size, _bilinear_taps)


def _scaled_size(height: int, width: int, size: int) -> tuple[int, int]:
    longer = size * max(height, width) // min(height, width)
    return (size, longer) if height <= width else (longer, size)


def _sample(rgb: np.ndarray, scaled: tuple[int, int], size: int, taps, square: int = 0) -> np.ndarray:
    """Resize `[H, W, 3]` to `scaled`, but compute only the `size` x `size` pixels in the middle.

    Args:
        square: side of an imagined square with the image in its middle, which
            is never built; 0 for none.
    """
    height, width, _ = rgb.shape
    rows, row_weights = taps(square or height, scaled[0], size)
    columns, column_weights = taps(square or width, scaled[1], size)
    if square:
        rows, columns = rows - (square - height) // 2, columns - (square - width) // 2
    near = rgb[rows.ravel().clip(0, height - 1)]
    near[(rows.ravel() < 0) | (rows.ravel() >= height)] = PADDING
    near = near.reshape(rows.size, -1)
    # With the channels as separate columns, each addition runs over contiguous values.
    mixed = 0
    for tap, weights in zip(columns, column_weights, strict=True):
        values = near.take((tap.clip(0, width - 1)[:, None] * 3 + np.arange(3)).ravel(), axis=1)
        values.reshape(rows.size, size, 3)[:, (tap < 0) | (tap >= width)] = PADDING
        mixed = mixed + values * weights.repeat(3)
    mixed = mixed.reshape(*rows.shape, -1)
    mixed = sum(tap * weights[:, None] for tap, weights in zip(mixed, row_weights, strict=True))
    return mixed.round().clip(0, 255).astype(np.uint8).reshape(size, size, 3)


def _bilinear_taps(length: int, scaled_length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2 old pixels that make each of the `size` new ones along a side, and weights, `[2, size]` each."""
    places = _places(length, scaled_length, size).clip(0)
    first = np.floor(places)
    return _within(first, np.arange(2), length), np.stack([1 - (places - first), places - first])


def _bicubic_taps(length: int, scaled_length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 4 old pixels that make each of the `size` new ones along a side, and weights, `[4, size]` each."""
    places = _places(length, scaled_length, size)
    first, offsets = np.floor(places), np.arange(-1, 3)
    distances = np.abs(places - first - offsets[:, None].astype(np.float32))
    near = ((BICUBIC_A + 2) * distances - (BICUBIC_A + 3)) * distances**2 + 1
    far = BICUBIC_A * (((distances - 5) * distances + 8) * distances - 4)
    return _within(first, offsets, length), np.where(distances <= 1, near, far)


def _places(length: int, scaled_length: int, size: int) -> np.ndarray:
    """Return the positions on the old side of the centres of the middle `size` new pixels, as exactly as PyTorch."""
    start = round((scaled_length - size) / 2)
    new = np.arange(start, start + size, dtype=np.float32)
    return np.float32(length / scaled_length) * (new + np.float32(0.5)) - np.float32(0.5)


def _within(first: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
    return (first.astype(int) + offsets[:, None]).clip(0, length - 1)


def _pillow_pixels(rgb: np.ndarray, size: int) -> np.ndarray:
    height, width = _scaled_size(*rgb.shape[:2], size)
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _padded_pillow_pixels(rgb: np.ndarray, size: int) -> np.ndarray:
    """Resize a square of the mean colour with the image in its middle, but compute only the parts near the image.

    Pillow resizes along rows first, each row on its own. Everything that the
    image does not reach keeps the mean colour.
    """
    height, width, _ = rgb.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    first, last = _reached_pixels(left, width, side, size)
    # The part of the square's width that the image reaches: its exact bounds in old pixels, and whole pixels around it.
    edges = first * side / size, last * side / size
    start, stop = math.floor(edges[0]), math.ceil(edges[1])
    narrow = np.full((side, size, 3), PADDING, np.uint8)
    near = np.full((ROWS_AT_A_TIME, stop - start, 3), PADDING, np.uint8)
    for row in range(0, height, ROWS_AT_A_TIME):
        num_rows = min(ROWS_AT_A_TIME, height - row)
        near[:num_rows, left - start : left - start + width] = rgb[row : row + num_rows]
        box = (edges[0] - start, 0, edges[1] - start, num_rows)
        image = Image.fromarray(near[:num_rows]).resize((last - first, num_rows), Image.Resampling.BICUBIC, box)
        narrow[top + row : top + row + num_rows, first:last] = image
    return np.asarray(Image.fromarray(narrow).resize((size, size), Image.Resampling.BICUBIC))


def _reached_pixels(left: int, width: int, side: int, size: int) -> tuple[int, int]:
    """Return the range of the `size` new pixels of a row that an image at `left` may reach: the first, and the end.

    Their positions among the old pixels are multiples of 1/32 or so, which the
    32-bit floats of Pillow's box hold exactly.
    """
    step = size // (size & -size)
    scale = side / size
    # A new pixel depends on those within 2 of it; every new pixel that depends on the image must be complete.
    reach = 4 * max(scale, 1) + 2
    first = math.floor((left - reach) / scale / step) * step
    last = math.ceil((left + width + reach) / scale / step) * step
    return max(first, 0), min(last, size)
