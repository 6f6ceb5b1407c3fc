"""Chooses the frames of a video that the model sees."""

import numpy as np


def sample_indices(num_clip_frames: int, num_frames: int) -> np.ndarray:
    """Return the indices of the frames to take, evenly spread from first to last; short videos repeat some.

    Source: the original's `load_and_transform_video`.
    """
    return np.linspace(0, num_clip_frames - 1, num_frames, dtype=int)


def sample_array(frames: np.ndarray, num_frames: int) -> np.ndarray:
    """Take `num_frames` of the frames `[N, ...]` of a decoded video."""
    return frames[sample_indices(len(frames), num_frames)]
