"""Write data that teach the tiny checkpoint a colour which its world lacks.

    python -m training.new_colour FOLDER --videos 600 --images 400 --seed 1

Every other clip and image has an object of the new colour; the others keep what
is known already in the mix. FOLDER/data.json has a conversation for each
question, in the original's format; its paths begin in FOLDER.
"""

import argparse
import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np

from vllm_videollava.conversion.small_files import write_json
from vllm_videollava.tiny.generator import Example, ask_about, draw_files
from vllm_videollava.tiny.world import Scene, random_clip_scene, random_image_scene

COLOUR = "pink"
# The ranges of hue (in degrees), saturation and value, as in `world`, whose purple and red are more saturated.
_HUE, _SATURATION, _VALUE = (328, 345), (0.4, 0.6), (0.9, 1.0)
# Appended to every seed, so that no scene here is one of the generator's or of the training scenes.
_MARK = 3
_VIDEO, _IMAGE, _WORDING, _CHOICE = range(4)


def write_examples(folder: Path, num_videos: int, num_images: int, seed: int) -> list[Example]:
    """Draw clips and images, and return every question about them and about pairs of them.

    Several processes draw, so a calling script needs its `if __name__ == "__main__"`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = [(_scene(_VIDEO, index, seed), folder / f"video-{index:04}.mp4") for index in range(num_videos)]
    images = [(_scene(_IMAGE, index, seed), folder / f"image-{index:04}.jpg") for index in range(num_images)]
    draw_files([*videos, *images])
    return ask_about(videos, images, np.random.default_rng([seed, _WORDING, 0, _MARK]))


def is_about_it(example: Example) -> bool:
    """Tell whether the right answer names the new colour."""
    return COLOUR in example.question.answer


def _scene(medium: int, index: int, seed: int) -> Scene:
    rng = np.random.default_rng([seed, medium, index, _MARK])
    scene = random_clip_scene(rng) if medium == _VIDEO else random_image_scene(rng)
    return _with_new_colour(scene, rng) if index % 2 else scene


def _with_new_colour(scene: Scene, rng: np.random.Generator) -> Scene:
    """Give the first object the new colour; one that changes gets it at first or at last."""
    first, *others = scene.things
    hue, saturation, value = (rng.uniform(*span) for span in (_HUE, _SATURATION, _VALUE))
    red, green, blue = (round(255 * share) for share in colorsys.hsv_to_rgb(hue / 360, saturation, value))
    if first.behaviour == "changes" and rng.random() < 0.5:
        first = replace(first, new_colour=COLOUR, new_rgb=(red, green, blue))
    else:
        first = replace(first, colour=COLOUR, rgb=(red, green, blue))
    return replace(scene, things=(first, *others))


def mixed(examples: list[Example], seed: int) -> list[Example]:
    """Return the examples about the new colour, and as many others, chosen at random."""
    known = [example for example in examples if not is_about_it(example)]
    about_it = [example for example in examples if is_about_it(example)]
    chosen = np.random.default_rng([seed, _CHOICE, 0, _MARK]).permutation(len(known))[: len(about_it)]
    return [*about_it, *(known[index] for index in chosen)]


def conversation(number: int, example: Example) -> dict:
    """Return an entry of the original's format, with one question and its answer."""
    media = zip(example.kinds, example.media, strict=True)
    placeholders = "".join(f"<{kind}>" for kind in example.kinds)
    return {
        "id": str(number),
        **{kind: path.name for kind, path in media},
        "conversations": [
            {"from": "human", "value": f"{placeholders}\n{example.question.text}"},
            {"from": "gpt", "value": example.question.answer},
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=600, metavar="N")
    parser.add_argument("--images", type=int, default=400, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    examples = mixed(write_examples(args.folder, args.videos, args.images, args.seed), args.seed)
    data = args.folder / "data.json"
    write_json(data, [conversation(number, example) for number, example in enumerate(examples)])
    print(f"{len(examples)} conversations are in {data}; half of them name {COLOUR}.")


if __name__ == "__main__":
    main()
