"""Which frames of a clip the model sees, and decoding them."""

import io
from dataclasses import dataclass

import decord
import numpy as np


@dataclass(frozen=True)
class Clip:
    """Frames sampled from a clip, and where they come from.

    Attributes:
        frames: uint8 `[T, H, W, 3]`, RGB.
        indices: the frames' numbers in the clip, T of them.
        num_clip_frames: how many frames the clip has.
        frames_per_second: the clip's average frame rate.
    """

    frames: np.ndarray
    indices: list[int]
    num_clip_frames: int
    frames_per_second: float


def sample_indices(num_clip_frames: int, num_frames: int) -> np.ndarray:
    """Return the frames to take, evenly spread from the first to the last; a shorter clip repeats some.

    Source: the original's `load_and_transform_video`.
    """
    return np.linspace(0, num_clip_frames - 1, num_frames, dtype=int)


def sample_array(frames: np.ndarray, num_frames: int) -> np.ndarray:
    """Take `num_frames` of the frames `[N, ...]` of a clip that is already decoded."""
    return frames[sample_indices(len(frames), num_frames)]


def decode_clip(data: bytes, num_frames: int) -> Clip:
    """Decode `num_frames` frames, evenly spread over the clip whose file has the content `data`.

    Raises:
        ValueError: `data` is no video that can be decoded.
    """
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        indices = sample_indices(len(reader), num_frames)
        frames = _read_frames(reader, indices)
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise ValueError(f"The video ({len(data)} bytes) cannot be decoded.") from error
    return Clip(frames, indices.tolist(), len(reader), float(reader.get_avg_fps()))


def _read_frames(reader: decord.VideoReader, indices: np.ndarray) -> np.ndarray:
    try:
        return reader.get_batch(indices).asnumpy()
    except decord.DECORDError:
        # Narrow clips come with padded rows that decord takes for a fourth
        # channel and then cannot batch (dmlc/decord#336).
        return np.stack([_drop_row_padding(reader[index].asnumpy()) for index in indices])


def _drop_row_padding(frame: np.ndarray) -> np.ndarray:
    height, width, _ = frame.shape
    return frame.reshape(height, -1)[:, : width * 3].reshape(height, width, 3)
