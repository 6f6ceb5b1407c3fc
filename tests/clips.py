"""Clips and images for the tests, made from numbers."""

import io

import av
import numpy as np
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC


def smooth_frames(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft random colours, in each frame others, uint8 `[N, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, 3, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(colours).resize((width, height), BICUBIC)) for colours in coarse])


def encode_clip(frames: np.ndarray, codec: str = "libx264", container: str = "mp4") -> bytes:
    """Encode frames, uint8 `[N, H, W, 3]`, at 10 frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def decode_all(data: bytes) -> np.ndarray:
    """Decode every frame from first to last, with another decoder than the package uses."""
    with av.open(io.BytesIO(data)) as clip:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)])
