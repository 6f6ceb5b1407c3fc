"""The original's pixel transforms in plain PyTorch, without rounding: what torchvision 0.15 did to tensors."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def original_image(rgb: np.ndarray, size: int) -> torch.Tensor:
    """Resize the shorter side, bicubic without antialiasing, and crop; `[H, W, 3]` to float `[3, size, size]`."""
    height, width = rgb.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    target = (longer, size) if width <= height else (size, longer)
    pixels = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None] / 255
    pixels = F.interpolate(pixels, size=target, mode="bicubic", align_corners=False, antialias=False)
    return _centre_crop(pixels, size)[0] * 255


def original_video(frames: np.ndarray, size: int) -> torch.Tensor:
    """Resize the shorter side, bilinear without antialiasing, and crop; `[T, H, W, 3]` to `[T, 3, size, size]`."""
    height, width = frames.shape[1:3]
    if width < height:
        target = (math.floor((float(height) / width) * size), size)
    else:
        target = (size, math.floor((float(width) / height) * size))
    pixels = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2) / 255
    pixels = F.interpolate(pixels, size=target, mode="bilinear", align_corners=False)
    return _centre_crop(pixels, size) * 255


def _centre_crop(pixels: torch.Tensor, size: int) -> torch.Tensor:
    top, left = (round((length - size) / 2.0) for length in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]
