"""Frames and images to the towers' pixels: resize, crop and round, each format in its own way.

Pixels leave as uint8; the towers normalise them. Sources: the original's
`processing_image.py` and `processing_video.py` with torchvision 0.15 on
tensors, and transformers' `VideoLlavaImageProcessor`.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def image_pixels(image: Image.Image, size: int, *, original: bool, pad: bool = False) -> torch.Tensor:
    """Scale the shorter side of an image to `size` and cut the middle out.

    Args:
        image: in mode RGB.
        original: as the original code (bicubic, not antialiased) or as
            transformers (bicubic, antialiased).
        pad: make the image square first, as the original's benchmarks do.

    Returns:
        uint8 `[3, size, size]`.
    """
    if pad:
        image = pad_to_square(image)
    if not original:
        return _pillow_pixels(image, size)
    scaled = _scaled_size(image.height, image.width, size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    return _crop_and_round(F.interpolate(pixels, scaled, mode="bicubic"), size)[0]


def video_pixels(frames: np.ndarray, size: int, *, original: bool) -> torch.Tensor:
    """Scale the shorter side of a clip's frames to `size` and cut the middle out.

    Args:
        frames: uint8 `[T, H, W, 3]`, RGB.
        original: as the original code (bilinear, not antialiased) or as
            transformers (bicubic, antialiased).

    Returns:
        uint8 `[T, 3, size, size]`.
    """
    if not original:
        return torch.stack([_pillow_pixels(Image.fromarray(frame), size) for frame in frames])
    height, width = frames.shape[1:3]
    # Divided first, unlike an image's size: where the result is whole, floating point may give one less.
    longer = math.floor(max(height, width) / min(height, width) * size)
    scaled = (size, longer) if height <= width else (longer, size)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return _crop_and_round(F.interpolate(pixels, scaled, mode="bilinear"), size)


def pad_to_square(image: Image.Image) -> Image.Image:
    """Put an RGB image in the middle of a square of the mean colour, as long as its longer side."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in IMAGE_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _scaled_size(height: int, width: int, size: int) -> tuple[int, int]:
    longer = size * max(height, width) // min(height, width)
    return (size, longer) if height <= width else (longer, size)


def _crop_and_round(pixels: torch.Tensor, size: int) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    crop = pixels[..., top : top + size, left : left + size]
    return crop.round().clamp(0, 255).to(torch.uint8).contiguous()


def _pillow_pixels(image: Image.Image, size: int) -> torch.Tensor:
    height, width = _scaled_size(image.height, image.width, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
