"""Clips for benchmarks: H.264 as cameras and phones write it, and copies of it that no cache has seen."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

FRAMES_PER_SECOND = 30


def write_clip(folder: Path, height: int, seconds: int = 10, seed: int = 0) -> Path:
    """Write an H.264 clip with x264's defaults: textures that pan at different speeds, with a camera's noise."""
    width = height * 16 // 9
    rng = np.random.default_rng(seed)
    path = folder / f"{height}-{seed}.mp4"
    near, far = (_texture(rng, cells, 2 * width, 2 * height) for cells in (12, 40))
    noise = rng.normal(0, 2, (height + 64, width + 64, 1)).astype(np.int16)
    mask = np.asarray(Image.fromarray(far[:, :, 0]).convert("L"))[..., None] > 128
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(seconds * FRAMES_PER_SECOND):
            shift, slow = index * height // 200, index * height // 900
            rgb = np.where(
                mask[slow : slow + height, slow : slow + width],
                near[shift % height :, shift % width :][:height, :width],
                far[slow : slow + height, slow : slow + width],
            )
            y, x = rng.integers(0, 64, 2)
            rgb = (rgb + noise[y : y + height, x : x + width]).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, FRAMES_PER_SECOND), index
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def _texture(rng: np.random.Generator, cells: int, width: int, height: int) -> np.ndarray:
    colours = rng.integers(0, 256, (cells, cells * 16 // 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC))


def repeat_clip(path: Path, times: int) -> Path:
    """Write a clip that shows another one several times, without encoding it again."""
    repeated = path.with_stem(f"{path.stem}x{times}")
    with av.open(str(path)) as source, av.open(str(repeated), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for turn in range(times):
            source.seek(0)
            length = source.streams.video[0].duration
            for packet in source.demux(video=0):
                if packet.size:
                    packet.pts, packet.dts = packet.pts + turn * length, packet.dts + turn * length
                    packet.stream = stream
                    output.mux(packet)
    return repeated


def copy_clip(path: Path, number: int) -> Path:
    """Write a copy that differs in a box of type "free", so that caches take it for another clip."""
    copy = path.with_stem(f"{path.stem}-{number}")
    copy.write_bytes(path.read_bytes() + b"\x00\x00\x00\x10free" + number.to_bytes(8, "big"))
    return copy


class NewClips:
    """Copies of two clips in turn, each given out once."""

    def __init__(self, folder: Path, height: int, seconds: int) -> None:
        self._clips, self._given = [write_clip(folder, height, seconds, seed) for seed in range(2)], 0

    def take(self, count: int) -> list[Path]:
        self._given += count
        numbers = range(self._given - count, self._given)
        return [copy_clip(self._clips[number % 2], number) for number in numbers]
