"""Reads the frames of a video with decord, as the original code does."""

from typing import BinaryIO

import decord
import numpy as np
from decord.base import DECORDError

from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.sampling import sample_indices

decord.logging.set_level(decord.logging.QUIET)


def read_frames(file: BinaryIO, num_frames: int, threads: int) -> np.ndarray:
    """Read `num_frames` frames, evenly spread over those that decord counts.

    decord also opens the files and addresses that a playlist names, so `file` must not be a playlist.

    Returns:
        uint8 `[num_frames, H, W, 3]`, RGB, rotated as the container says, but not mirrored.

    Raises:
        MediaError: decord cannot read the file.
    """
    file.seek(0)
    try:
        reader = decord.VideoReader(file, num_threads=threads)
        return reader.get_batch(sample_indices(len(reader), num_frames)).asnumpy()
    except (DECORDError, RuntimeError, AssertionError, IndexError) as error:
        if "bad_alloc" in str(error):
            raise MemoryError from error
        raise MediaError(
            "The video cannot be decoded with decord (VIDEO_LLAVA_DECODER); "
            "try another format or size, for example H.264 in MP4."
        ) from error
