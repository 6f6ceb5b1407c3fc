"""Checks tensors that several kernels take."""

from collections.abc import Sequence

import torch


def check_clips(states: torch.Tensor, num_frames: int) -> None:
    """Raise a `ValueError` unless `states` is `[F, N, D]` and consists of whole clips of `num_frames` frames."""
    if states.ndim != 3 or len(states) % num_frames:
        raise ValueError(f"{list(states.shape)} cannot be [F, N, D], because F must be a multiple of {num_frames}.")


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    """Raise a `ValueError` unless a tensor has this shape; a kernel would read memory beyond a smaller one."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"The tensor {name} is {list(tensor.shape)}; it must be {list(shape)}.")
