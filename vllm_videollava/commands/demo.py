"""`vllm-videollava demo`: draw a clip, serve the tiny checkpoint, and ask it about the clip through `openai`."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from openai import OpenAI
from PIL import Image

from vllm_videollava.client import messages
from vllm_videollava.client.server import local_server
from vllm_videollava.commands.models import TINY
from vllm_videollava.decoding.sampling import sample_indices
from vllm_videollava.tiny.drawing import draw_frames, write_video
from vllm_videollava.tiny.questions import Question, questions_about
from vllm_videollava.tiny.world import COLOURS, DIRECTIONS, SHAPES, Scene, random_clip_scene

HELP = "draw a random clip and ask the tiny checkpoint about it"
EXAMPLE = "vllm-videollava demo --shape triangle --color red --moves left"
HANDS_ON = False
NUM_QUESTIONS = 4
# The kinds of questions to choose from, the most interesting first.
KINDS = ("shape", "direction", "order", "description", "colour", "count", "motion")
NUM_FRAMES = 8
FRAME_WIDTH, GAP = 120, 4
FRAME_COLUMNS = 18
"""The width of a frame in a terminal, in characters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, help="shape of the clip's only object")
    parser.add_argument("--colour", "--color", choices=COLOURS, help="colour of the clip's only object")
    parser.add_argument("--moves", choices=DIRECTIONS, help="direction in which the clip's only object moves")
    parser.add_argument(
        "--seed", type=_seed, metavar="N", help="random seed; the same seed and options give the same clip"
    )


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def run(args: argparse.Namespace) -> str | None:
    """Run the demo; return an error's sentence, or None."""
    try:
        run_demo(args.shape, args.colour, args.moves, args.seed)
    except RuntimeError as error:
        return str(error)


def run_demo(shape: str | None, colour: str | None, moves: str | None, seed: int | None) -> None:
    """Ask four questions about a clip; print the answers, the expected answers and the times.

    Args:
        shape, colour, moves: properties of the clip's only object; if all are
            None, the clip has one or two random objects.
        seed: random seed; None gives a new clip each time.

    Raises:
        RuntimeError: the server did not start.
    """
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    rng = np.random.default_rng(seed)
    num_things = 1 if shape or colour or moves else None
    scene = random_clip_scene(rng, num_things, shape=shape, colour=colour, behaviour=moves)
    folder = Path(tempfile.mkdtemp(prefix="video-llava-demo-"))
    clip = write_video(scene, folder / "clip.mp4")
    show_frames(scene, folder / "frames.png")
    print(f"Clip      {clip}: {scene.num_frames} frames, {scene.width} x {scene.height}")
    options = {"shape": shape, "colour": colour, "moves": moves, "seed": seed}
    flags = [f"--{name} {value}" for name, value in options.items() if value is not None]
    print(f"Again     vllm-videollava demo {' '.join(flags)}")
    print("Model     the tiny checkpoint of this package, a demonstration that knows only such clips", flush=True)
    # Compiling would take longer than the answers; a GiB of cache is plenty on a CPU.
    cache = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")
    with local_server(TINY, folder / "server.log", "--enforce-eager", VLLM_CPU_KVCACHE_SPACE=cache) as server:
        print(f"Server    ready after {server.seconds:.0f} s, log in {server.log}", flush=True)
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        right = [ask(client, clip, question) for question in choose_questions(scene, rng)]
    print(f"\n{sum(right)} of {len(right)} answers are as expected.")


def choose_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Choose four questions of different kinds about a scene; every scene has that many."""
    about = {question.kind: question for question in questions_about(scene, rng)}
    return [about[kind] for kind in KINDS if kind in about][:NUM_QUESTIONS]


def show_frames(scene: Scene, path: Path) -> None:
    """Save a picture of the model's frames, side by side and uncropped; in a terminal, also print them."""
    frames = draw_frames(scene, sample_indices(scene.num_frames, NUM_FRAMES))
    height = round(FRAME_WIDTH * scene.height / scene.width)
    strip = Image.new("RGB", (NUM_FRAMES * (FRAME_WIDTH + GAP), height), "white")
    pictures = [Image.fromarray(frame) for frame in frames]
    for index, picture in enumerate(pictures):
        strip.paste(picture.resize((FRAME_WIDTH, height)), (index * (FRAME_WIDTH + GAP), 0))
    strip.save(path)
    if sys.stdout.isatty():
        rows = 2 * round(FRAME_COLUMNS * scene.height / scene.width / 2)
        small = [np.asarray(picture.resize((FRAME_COLUMNS, rows))) for picture in pictures]
        for first in (0, NUM_FRAMES // 2):
            print(_blocks(small[first : first + NUM_FRAMES // 2]))
    print(f"Frames    {path}")


def _blocks(frames: list[np.ndarray]) -> str:
    """Draw frames side by side with coloured characters; each character is two pixels, one above the other."""
    lines = []
    for row in range(0, len(frames[0]), 2):
        line = ""
        for frame in frames:
            for (red, green, blue), (below_red, below_green, below_blue) in zip(*frame[row : row + 2], strict=True):
                line += f"\x1b[38;2;{red};{green};{blue}m\x1b[48;2;{below_red};{below_green};{below_blue}m▀"
            line += "\x1b[0m "
        lines.append(line)
    return "\n".join(lines) + "\n"


def ask(client: OpenAI, clip: Path, question: Question) -> bool:
    """Ask one question, print its answer and the expected one, and return whether they are equal."""
    url = messages.data_url(clip.read_bytes(), "video/mp4")
    start = time.monotonic()
    stream = client.chat.completions.create(
        model=TINY,
        messages=messages.question(question.text, [messages.media_part("video", url)]),
        max_tokens=64,
        temperature=0,
        stream=True,
    )
    first, answer = None, ""
    for chunk in stream:
        if text := chunk.choices[0].delta.content:
            first = first or time.monotonic() - start
            answer += text
    answer = answer.strip()
    print(f"\nQuestion  {question.text}")
    print(f"Answer    {answer}")
    print(f"Expected  {question.answer}")
    print(f"Times     first word after {first or 0:.2f} s, all after {time.monotonic() - start:.2f} s", flush=True)
    return answer == question.answer
