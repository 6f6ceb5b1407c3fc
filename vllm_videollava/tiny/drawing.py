"""Draws scenes as frames, H.264 clips and image files."""

from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vllm_videollava.tiny.world import Background, Scene, Thing


def draw_frames(scene: Scene, indices: list[int] | np.ndarray | None = None) -> np.ndarray:
    """Draw all frames of a scene, or those at `indices`, as uint8 `[N, H, W, 3]`."""
    background = _draw_background(scene.background, scene.height, scene.width)
    last = max(scene.num_frames - 1, 1)
    frames = []
    for index in range(scene.num_frames) if indices is None else indices:
        frame = background.copy()
        for thing in scene.things:
            if thing.is_visible(index / last):
                _draw_thing(frame, thing, index / last)
        frames.append((frame + 0.5).astype(np.uint8))
    return np.stack(frames)


def write_video(scene: Scene, path: str | PathLike) -> Path:
    """Write a scene as an H.264 clip and return its path."""
    encode_frames(draw_frames(scene), path, scene.fps)
    return Path(path)


def write_image(scene: Scene, path: str | PathLike) -> Path:
    """Write a scene of one frame as an image, in the format that the path's suffix names, and return its path."""
    Image.fromarray(draw_frames(scene)[0]).save(path)
    return Path(path)


def encode_frames(frames: np.ndarray, file: str | PathLike | BinaryIO, fps: int, **options: str) -> None:
    """Encode frames, uint8 `[N, H, W, 3]`, as H.264 in MP4 to a path or a file object.

    Args:
        options: options of x264 that replace its defaults.
    """
    # Imported only here, so that scenes can be drawn without PyAV's libraries.
    import av

    with av.open(file if hasattr(file, "write") else str(file), "w", format="mp4") as clip:
        stream = clip.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        clip.mux(stream.encode())


def coverage(thing: Thing, time: float, x: np.ndarray, y: np.ndarray, softness: float) -> np.ndarray:
    """Return how far an object covers each point `(x, y)`, from 0 to 1, with edges `softness` wide."""
    centre_x, centre_y = thing.centre(time)
    return np.clip(0.5 - _distance(thing, x - centre_x, y - centre_y) / softness, 0, 1)


def _distance(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of points from an object's edge; it is negative inside."""
    radius, proportion = thing.radius, thing.proportion
    if thing.shape == "circle":
        return np.hypot(x, y) - radius
    if thing.shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius * (0.75 + 0.25 * proportion)
    base, half_width = radius * (0.5 + 0.5 * proportion), radius * (0.87 + 0.13 * proportion)
    side = ((y + radius) * half_width - np.abs(x) * (base + radius)) / np.hypot(half_width, base + radius)
    return np.maximum(y - base, -side)


def _draw_thing(frame: np.ndarray, thing: Thing, time: float) -> None:
    """Draw an object on a float frame `[H, W, 3]`, where it is at `time`."""
    height, width, _ = frame.shape
    shorter = min(height, width)
    reach = 1.5 * thing.radius
    x, y = thing.centre(time)
    rows = _span(height, shorter, y, reach)
    columns = _span(width, shorter, x, reach)
    ys = (np.arange(rows.start, rows.stop) + 0.5 - height / 2) / shorter
    xs = (np.arange(columns.start, columns.stop) + 0.5 - width / 2) / shorter
    share = coverage(thing, time, xs[None], ys[:, None], 1 / shorter)[..., None]
    rgb = np.array(thing.new_rgb if thing.has_changed(time) else thing.rgb)
    frame[rows, columns] += share * (rgb - frame[rows, columns])


def _span(length: int, shorter: int, centre: float, reach: float) -> slice:
    first, last = ((centre + side) * shorter + length / 2 for side in (-reach, reach))
    start = int(np.clip(np.floor(first), 0, length))
    return slice(start, int(np.clip(np.ceil(last), start, length)))


def _draw_background(background: Background, height: int, width: int) -> np.ndarray:
    first, second = np.array(background.rgb, np.float32), np.array(background.second_rgb, np.float32)
    if background.kind == "noisy":
        noise = np.random.default_rng(background.seed).integers(-128, 128, (height, width, 3), dtype=np.int8)
        return np.clip(first + noise * (np.abs(second - first).max() / 128), 0, 255).astype(np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = x * np.cos(background.angle) + y * np.sin(background.angle)
    if background.kind == "gradient":
        share = (along - along.min()) / (along.max() - along.min())
    elif background.kind == "stripes":
        share = along // background.scale % 2
    elif background.kind == "chequered":
        share = (x // background.scale + y // background.scale) % 2
    else:
        share = np.zeros_like(x)
    return first + share[..., None] * (second - first)
