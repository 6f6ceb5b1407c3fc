"""Clips, images and questions about them, written to a folder: for demos, tests and training of one's own.

    python -m vllm_videollava.tiny.generator FOLDER --videos 10 --images 10 --seed 1

The same seed gives the same scenes and questions. FOLDER/questions.jsonl has a
line for each question: its media, kind, text and right answer.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vllm_videollava.tiny.drawing import write_clip, write_image
from vllm_videollava.tiny.questions import Question, questions_about, questions_about_both
from vllm_videollava.tiny.world import Scene, draw_clip_scene, draw_image_scene

QUESTIONS = "questions.jsonl"
# Never the seeds of the training's scenes, which are one number longer or shorter.
_VIDEO, _IMAGE, _WORDING = range(3)


class Example(NamedTuple):
    """A question about media, in this order."""

    media: tuple[Path, ...]
    question: Question


def write_examples(folder: Path, num_videos: int, num_images: int, seed: int) -> list[Example]:
    """Draw clips and images, and return every question about them.

    A clip and an image with one object each are also asked about together.
    Clips are H.264 in MP4; of the images every other one is JPEG, the rest PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = [draw_clip_scene(np.random.default_rng([seed, _VIDEO, index, 0])) for index in range(num_videos)]
    images = [draw_image_scene(np.random.default_rng([seed, _IMAGE, index, 0])) for index in range(num_images)]
    paths = {id(scene): folder / f"video-{index:04}.mp4" for index, scene in enumerate(videos)}
    for index, scene in enumerate(images):
        paths[id(scene)] = folder / f"image-{index:04}.{('jpg', 'png')[index % 2]}"
    with ProcessPoolExecutor() as pool:
        list(pool.map(_write, [*videos, *images], [paths[id(scene)] for scene in [*videos, *images]], chunksize=4))

    rng = np.random.default_rng([seed, _WORDING, 0, 0])
    examples = [
        Example((paths[id(scene)],), question)
        for scene in (*videos, *images)
        for question in questions_about(scene, rng)
    ]
    alone = [[scene for scene in scenes if len(scene.things) == 1] for scenes in (videos, images)]
    examples += [
        Example((paths[id(video)], paths[id(image)]), question)
        for video, image in zip(*alone, strict=False)
        for question in questions_about_both(video, image, rng)
    ]
    return examples


def _write(scene: Scene, path: Path) -> None:
    (write_clip if scene.medium == "video" else write_image)(scene, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=10, metavar="N")
    parser.add_argument("--images", type=int, default=10, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    examples = write_examples(args.folder, args.videos, args.images, args.seed)
    with (args.folder / QUESTIONS).open("w") as file:
        for media, question in examples:
            file.write(json.dumps({"media": [path.name for path in media], **question._asdict()}) + "\n")
    print(f"{args.videos} clips, {args.images} images and {len(examples)} questions are in {args.folder}.")


if __name__ == "__main__":
    main()
