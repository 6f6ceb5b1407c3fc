"""Write clips, images and questions about them to a folder, for demos, for tests and for training your own model.

    python -m vllm_videollava.tiny.generator FOLDER --videos 10 --images 10 --seed 1

The same seed gives the same scenes and questions. FOLDER/questions.jsonl has
one line for each question, with its media, kind, text and right answer.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vllm_videollava.tiny.drawing import write_image, write_video
from vllm_videollava.tiny.questions import Question, only_colour, questions_about, questions_about_both
from vllm_videollava.tiny.world import Scene, random_clip_scene, random_image_scene

QUESTIONS = "questions.jsonl"
# Appended to every seed, so that no scene here is one of the training scenes.
_MARK = 1
_VIDEO, _IMAGE, _WORDING = range(3)

# A scene, and the file that shows it.
Drawn = tuple[Scene, Path]


class Example(NamedTuple):
    """A question, and the media that it is about, in order; clips have the suffix `.mp4`."""

    media: tuple[Path, ...]
    question: Question

    @property
    def kinds(self) -> list[str]:
        """Return "video" or "image" for each of the media."""
        return ["video" if path.suffix == ".mp4" else "image" for path in self.media]


def write_examples(folder: Path, num_videos: int, num_images: int, seed: int) -> list[Example]:
    """Draw clips and images, and return every question about them.

    There are also questions about pairs. A pair is a clip and an image, in
    random order, each with one object that keeps its colour. Every other pair
    has the same colour twice. Clips are H.264 in MP4; images are alternately
    JPEG and PNG. Several processes draw, so a calling script needs its
    `if __name__ == "__main__"`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = [
        (random_clip_scene(np.random.default_rng([seed, _VIDEO, index, _MARK])), folder / f"video-{index:04}.mp4")
        for index in range(num_videos)
    ]
    images = [
        (
            random_image_scene(np.random.default_rng([seed, _IMAGE, index, _MARK])),
            folder / f"image-{index:04}.{('jpg', 'png')[index % 2]}",
        )
        for index in range(num_images)
    ]
    draw_files([*videos, *images])
    return ask_about(videos, images, np.random.default_rng([seed, _WORDING, 0, _MARK]))


def draw_files(scenes: list[Drawn]) -> None:
    """Write each scene to its file, in several processes."""
    # The processes are not forked, because the caller may have threads.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as executor:
        list(executor.map(_write, scenes, chunksize=4))


def ask_about(videos: list[Drawn], images: list[Drawn], rng: np.random.Generator) -> list[Example]:
    """Return every question about some clips and images, and about pairs of them as in `write_examples`."""
    examples = [
        Example((path,), question) for scene, path in (*videos, *images) for question in questions_about(scene, rng)
    ]
    examples += [
        Example((video_path, image_path)[:: rng.choice((1, -1))], question)
        for (video, video_path), (image, image_path) in _pairs(videos, images, rng)
        for question in questions_about_both(video, image, rng)
    ]
    return examples


def _pairs(videos: list[Drawn], images: list[Drawn], rng: np.random.Generator) -> Iterator[tuple[Drawn, Drawn]]:
    """Pair clips and images that have one colour each; every other pair has the same colour twice."""
    coloured_videos, coloured_images = ([pair for pair in pairs if only_colour(pair[0])] for pairs in (videos, images))
    same = True
    for video in coloured_videos:
        fitting = [image for image in coloured_images if (only_colour(image[0]) == only_colour(video[0])) == same]
        if fitting:
            yield video, fitting[rng.integers(len(fitting))]
            same = not same


def _write(scene_and_path: Drawn) -> None:
    scene, path = scene_and_path
    (write_video if scene.medium == "video" else write_image)(scene, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=10, metavar="N")
    parser.add_argument("--images", type=int, default=10, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if min(args.videos, args.images, args.seed) < 0:
        parser.error("--videos, --images and --seed must not be negative.")
    examples = write_examples(args.folder, args.videos, args.images, args.seed)
    with (args.folder / QUESTIONS).open("w") as file:
        for media, question in examples:
            file.write(json.dumps({"media": [path.name for path in media], **question._asdict()}) + "\n")
    print(f"{args.videos} clips, {args.images} images and {len(examples)} questions are in {args.folder}.")


if __name__ == "__main__":
    main()
