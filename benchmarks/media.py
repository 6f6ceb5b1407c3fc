"""Time from a clip's file to the pixels that are sent to the engine, this package's way and others.

    python -m benchmarks.media

Writes benchmarks/results/media.jsonl. All ways make 8 frames of 224 pixels:
transformers' with its own steps, those of OpenCV and decord with the original
code's. The last way shows what is left of the difference when decord is given
this package's resizing and one thread for each clip. Takes about 20 minutes.
"""

import argparse
import io
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import av
import decord
import numpy as np
import torch
import torch.nn.functional as F
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

from benchmarks.clips import copy_clip, repeat_clip, write_clip
from benchmarks.harness import interleave, row, write_rows
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.decoding.pixels import IMAGE_MEAN, IMAGE_STD, frame_pixels
from vllm_videollava.decoding.sampling import sample_indices
from vllm_videollava.media.connector import VideoLlavaMediaConnector

SIZE = 224
HEIGHTS = {"360p": 360, "720p": 720, "1080p": 1080, "4K": 2160}
SECONDS = (10, 120)
CONNECTOR = VideoLlavaMediaConnector(
    PixelFormat(num_frames=8, image_size=SIZE, video_size=SIZE, original=True), allowed_local_media_path="/"
)


def main() -> None:
    args = parse_args()
    # Every request must be decoded.
    os.environ["VIDEO_LLAVA_DECODED_CACHE_MB"] = "0"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        warm_up(write_clip(Path(name), 360, seconds=1))
        for resolution in args.resolutions:
            ten_seconds = write_clip(Path(name), HEIGHTS[resolution])
            for seconds in SECONDS:
                path = repeat_clip(ten_seconds, seconds // 10)
                rows += measure(path, f"{resolution}, {seconds} s", rounds_for(resolution, seconds))
    print(f"Written to {write_rows('media', rows)}")


def warm_up(path: Path) -> None:
    """Start workers and load what the ways need, untimed."""
    for make in WAYS.values():
        all_at_once(make, [copy_clip(path, number) for number in range(len(os.sched_getaffinity(0)))])


def rounds_for(resolution: str, seconds: int) -> int:
    """Return fewer rounds where a single one takes minutes."""
    if HEIGHTS[resolution] <= 720:
        return 3
    return 2 if seconds == 10 else 1


def measure(path: Path, case: str, rounds: int) -> list[dict]:
    """Time each way with one clip alone, and with as many at once as there are cores."""
    copies = [copy_clip(path, number) for number in range(len(os.sched_getaffinity(0)))]
    sent: dict[str, int] = {}

    def alone(way: str) -> None:
        sent[way] = WAYS[way](path).nbytes

    lone = interleave({way: partial(alone, way) for way in WAYS}, rounds)
    together = interleave({way: partial(all_at_once, WAYS[way], copies) for way in WAYS}, rounds)
    rows = []
    for way in WAYS:
        rows += [
            row(case, way, "time of a lone clip", "s", (sample.wall for sample in lone[way])),
            row(case, way, "this process's CPU time per clip", "s", (sample.cpu for sample in lone[way])),
            row(case, way, "sent to the engine", "byte", [sent[way]]),
            row(case, way, "clips at once", "clip/s", (len(copies) / sample.wall for sample in together[way])),
        ]
    for result in rows:
        print(f"{case:14} {result['way']:34} {result['metric']:34} {result['p50']:10.4g} {result['unit']}", flush=True)
    return rows


def all_at_once(make: Callable[[Path], np.ndarray], paths: list[Path]) -> None:
    """Decode on all cores, as a server's threads do."""
    with ThreadPoolExecutor(len(paths)) as threads:
        list(threads.map(make, paths))


def with_this_package(path: Path) -> np.ndarray:
    return CONNECTOR.fetch_video(path.as_uri()).media


def with_transformers_steps(path: Path) -> np.ndarray:
    """Decode the whole clip with PyAV, as transformers' documentation does, then its processor's steps with Pillow."""
    with av.open(str(path)) as container:
        wanted = set(sample_indices(container.streams.video[0].frames, 8).tolist())
        frames = [
            frame.to_ndarray(format="rgb24") for index, frame in enumerate(container.decode(video=0)) if index in wanted
        ]
    pixels = np.stack([frame_pixels(frame, SIZE, original=False) for frame in frames])
    return ((pixels / np.float32(255) - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)).transpose(0, 3, 1, 2)


def with_vllms_opencv_loader(path: Path) -> np.ndarray:
    frames, _ = VIDEO_LOADER_REGISTRY.load("opencv").load_bytes(path.read_bytes(), num_frames=8)
    return _resize(frames)


def _resize(frames: np.ndarray) -> np.ndarray:
    """Resize and crop the frames of a wide video as the original code does: `[T, H, W, 3]` to `[T, 3, SIZE, SIZE]`."""
    height, width = frames.shape[1:3]
    wide = SIZE, math.floor(width / height * SIZE)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    pixels = F.interpolate(pixels, size=wide, mode="bilinear", align_corners=False)
    left = round((wide[1] - SIZE) / 2)
    return (pixels[..., left : left + SIZE] * 255).numpy()


def with_decord(path: Path) -> np.ndarray:
    return _resize(_read_with_decord(path, threads=0))


def with_decord_and_this_packages_resizing(path: Path) -> np.ndarray:
    return np.stack([frame_pixels(frame, SIZE, original=True) for frame in _read_with_decord(path, threads=1)])


def _read_with_decord(path: Path, threads: int) -> np.ndarray:
    reader = decord.VideoReader(io.BytesIO(path.read_bytes()), num_threads=threads)
    return reader.get_batch(sample_indices(len(reader), 8)).asnumpy()


WAYS: dict[str, Callable[[Path], np.ndarray]] = {
    "this package": with_this_package,
    "PyAV and transformers' steps": with_transformers_steps,
    "vLLM's OpenCV loader": with_vllms_opencv_loader,
    "decord": with_decord,
    "decord, one thread, our resizing": with_decord_and_this_packages_resizing,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", nargs="+", choices=HEIGHTS, default=list(HEIGHTS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
