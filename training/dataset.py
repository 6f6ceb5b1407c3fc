"""The training data: pixels, which are drawn once and kept, and the labels that go with them."""

import dataclasses
import io
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from training.tiny_config import VIDEO_TOWER
from vllm_videollava.decoding.pixels import frame_pixels, image_pixels
from vllm_videollava.decoding.sampling import sample_indices
from vllm_videollava.tiny.drawing import coverage, draw_frames, encode_frames
from vllm_videollava.tiny.world import BEHAVIOURS, COLOURS, SHAPES, Scene, Thing, random_clip_scene, random_image_scene

NUM_FRAMES = VIDEO_TOWER["num_frames"]
NOBODY = -1
# Classes of a patch or of an object; index 0 means none.
NUM_SHAPES, NUM_COLOURS, NUM_BEHAVIOURS = len(SHAPES) + 1, len(COLOURS) + 1, len(BEHAVIOURS) + 1
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "appears": "vanishes", "vanishes": "appears"}


class Sample(NamedTuple):
    """A clip or an image.

    Attributes:
        pixels: uint8 `[T, S, S, 3]`.
        owners: the object that covers the largest part of each patch, or `NOBODY`; int8 `[T, P, P]`.
        times: the frames' times `[T]`, as shares of the clip.
    """

    scene: Scene
    pixels: np.ndarray
    owners: np.ndarray
    times: np.ndarray


class Pool:
    """Scenes and their pixels, drawn by several processes and kept in a folder for the next run."""

    def __init__(self, folder: Path, medium: str, count: int, size: int, grid: int, workers: int) -> None:
        self.medium = medium
        num_frames = NUM_FRAMES if medium == "video" else 1
        pixels_path, owners_path = folder / f"{medium}-pixels.npy", folder / f"{medium}-owners.npy"
        if not owners_path.exists():
            pixels = np.lib.format.open_memmap(pixels_path, "w+", np.uint8, (count, num_frames, size, size, 3))
            owners = np.full((count, num_frames, grid, grid), NOBODY, np.int8)
            draw = partial(random_sample, medium=medium, size=size, grid=grid)
            with ProcessPoolExecutor(workers) as executor:
                drawn = executor.map(draw, range(count), chunksize=32)
                for index, sample in enumerate(tqdm(drawn, f"drawing {medium}s", count, smoothing=0)):
                    pixels[index], owners[index] = sample.pixels, sample.owners
            pixels.flush()
            np.save(owners_path, owners)
        self._pixels, self._owners = np.load(pixels_path, mmap_mode="r"), np.load(owners_path)

    def __len__(self) -> int:
        return len(self._owners)

    def draw(self, rng: np.random.Generator) -> Sample:
        """Choose a random sample, mirrored or reversed in time at random."""
        index = int(rng.integers(len(self)))
        scene = scene_of(self.medium, index)
        _, times = _sampled(scene)
        sample = Sample(scene, self._pixels[index], self._owners[index], times)
        if rng.random() < 0.5:
            sample = mirrored(sample)
        return reversed_in_time(sample) if self.medium == "video" and rng.random() < 0.5 else sample


@cache
def scene_of(medium: str, seed: int) -> Scene:
    """Return the scene that a seed stands for."""
    rng = np.random.default_rng([seed, medium == "video"])
    return random_clip_scene(rng) if medium == "video" else random_image_scene(rng)


def random_sample(seed: int, *, medium: str, size: int, grid: int) -> Sample:
    """Draw a sample as a file would give it: encoded and decoded, but only the frames that the model sees."""
    scene = scene_of(medium, seed)
    rng = np.random.default_rng([seed, 2])
    indices, times = _sampled(scene)
    frames = draw_frames(scene, indices)
    if medium == "video":
        frames = _through_h264(frames, rng)
        pixels = [frame_pixels(frame, size, original=True) for frame in frames]
    else:
        pixels = [image_pixels(_through_jpeg(frames[0], rng), size, original=True)]
    return Sample(scene, np.stack(pixels), np.stack([_owners(scene, time, grid) for time in times]), times)


def _sampled(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of a scene's frames that the model sees, and their times."""
    indices = sample_indices(scene.num_frames, NUM_FRAMES if scene.medium == "video" else 1)
    return indices, indices / max(scene.num_frames - 1, 1)


def mirrored(sample: Sample) -> Sample:
    """Mirror a sample left to right."""
    things = tuple(
        dataclasses.replace(
            thing,
            behaviour=_OPPOSITE[thing.behaviour] if thing.behaviour in ("left", "right") else thing.behaviour,
            start=(-thing.start[0], thing.start[1]),
            end=(-thing.end[0], thing.end[1]),
        )
        for thing in sample.scene.things
    )
    scene = dataclasses.replace(sample.scene, things=things)
    return Sample(scene, sample.pixels[:, :, ::-1], sample.owners[:, :, ::-1], sample.times)


def reversed_in_time(sample: Sample) -> Sample:
    """Play a sample backwards; unlike in `world`, both of its two events may then be other than an appearance."""
    things = tuple(_reversed_thing(thing) for thing in sample.scene.things)
    scene = dataclasses.replace(sample.scene, things=things)
    return Sample(scene, sample.pixels[::-1], sample.owners[::-1], 1 - sample.times[::-1])


def _reversed_thing(thing: Thing) -> Thing:
    changed = {}
    if thing.behaviour == "changes":
        changed = {
            "colour": thing.new_colour,
            "rgb": thing.new_rgb,
            "new_colour": thing.colour,
            "new_rgb": thing.rgb,
        }
    return dataclasses.replace(
        thing,
        behaviour=_OPPOSITE.get(thing.behaviour, thing.behaviour),
        start=thing.end,
        end=thing.start,
        event_time=1 - thing.event_time,
        **changed,
    )


def _through_h264(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    clip = io.BytesIO()
    encode_frames(frames, clip, 12, crf=str(rng.integers(16, 30)), preset="veryfast", threads="1")
    clip.seek(0)
    with av.open(clip) as decoder:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in decoder.decode(video=0)])


def _through_jpeg(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.3:
        return frame
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=int(rng.integers(60, 96)))
    return np.asarray(Image.open(file))


def _owners(scene: Scene, time: float, grid: int, points: int = 4) -> np.ndarray:
    """Return the object that covers the largest part of each patch of the middle square, if that is a tenth of it."""
    places = (np.arange(grid * points) + 0.5) / (grid * points) - 0.5
    shares = np.full((1 + len(scene.things), grid, grid), 0.1)
    for index, thing in enumerate(scene.things, 1):
        share = coverage(thing, time, places[None], places[:, None], 0.01) * thing.is_visible(time)
        shares[index] = share.reshape(grid, points, grid, points).mean((1, 3))
    return shares.argmax(0).astype(np.int8) + NOBODY
