"""Checks tensors that several kernels take."""

import torch


def check_clips(states: torch.Tensor, num_frames: int) -> None:
    """Raise a `ValueError` unless `states` is `[F, N, D]` and consists of whole clips of `num_frames` frames."""
    if states.ndim != 3 or len(states) % num_frames:
        raise ValueError(f"{list(states.shape)} cannot be [F, N, D], because F must be a multiple of {num_frames}.")
