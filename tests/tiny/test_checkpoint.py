"""The tiny checkpoint: its answers are right, through the engine and whatever its numbers are, and it is small."""

import re

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from benchmarks.tiny_accuracy import PRECISIONS, accuracy, answer, start_engine
from helpers.asking import original_prompt
from helpers.clips import decode_all
from helpers.paths import ROOT
from helpers.results import RESULTS
from original.model import PLACEHOLDER, OriginalVideoLlava
from original.pixels import original_image, original_video
from vllm_videollava import tiny_checkpoint
from vllm_videollava.tiny.drawing import draw_frames, encode_frames
from vllm_videollava.tiny.generator import Example, write_examples
from vllm_videollava.tiny.questions import Question
from vllm_videollava.tiny.world import random_clip_scene

SIZE = 98
BARS = {
    **dict.fromkeys(("shape", "colour", "count"), 0.97),
    **dict.fromkeys(("direction", "order", "motion", "contents", "description", "same colour"), 0.95),
}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return write_examples(tmp_path_factory.mktemp("examples"), 100, 40, seed=5)


def fewer_bits(precision: str, how: str):
    mark = pytest.mark.feature("Fine-tunes and fewer bits", precision, how=how, slow=True)
    return pytest.param(precision, marks=mark)


@pytest.fixture(
    scope="module",
    params=[
        "float32",
        fewer_bits("int8 weights", "`--quantization torchao`, weights only"),
        fewer_bits("fp8_per_channel", "`--quantization fp8_per_channel`"),
    ],
)
def llm(request):
    llm = start_engine(request.param)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def test_answers_are_right(llm, examples):
    counts = accuracy(examples, answer(llm, examples))
    print("\n".join(f"{name:40} {right:4} of {asked:4}" for name, (right, asked) in sorted(counts.items())))
    for kind, bar in BARS.items():
        of_kind = [count for name, count in counts.items() if re.match(rf"{kind}\b", name)]
        right, asked = np.sum(of_kind, axis=0)
        assert asked >= 15
        assert right / asked >= bar, f"{kind}: {right} of {asked}"


def test_reversed_frames_turn_the_direction_around(llm, tmp_path):
    rng = np.random.default_rng(11)
    examples = []
    for index, (direction, opposite) in enumerate([*OPPOSITE.items()] * 3):
        scene = random_clip_scene(rng, 1, behaviour=direction)
        frames, shape = draw_frames(scene), scene.things[0].shape
        for name, order, way in (("forth", frames, direction), ("back", frames[::-1], opposite)):
            path = tmp_path / f"{name}-{index}.mp4"
            encode_frames(order, path, scene.fps)
            question = Question("direction", f"Which way does the {shape} move?", f"The {shape} moves {way}.")
            examples.append(Example((path,), question))
    assert answer(llm, examples) == [example.question.answer for example in examples]


def test_answers_are_those_of_the_original_in_plain_pytorch(llm, examples):
    """The reference in float32 says the same words, so that what was trained is what is served."""
    original = OriginalVideoLlava.from_folder(tiny_checkpoint())
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(tiny_checkpoint() / "tokenizer.model"))
    chosen = examples[::70]
    for example, given in zip(chosen, answer(llm, chosen), strict=True):
        media = "<media>" * len(example.media)
        before, *_, after = original_prompt(media, example.question.text).split("<media>")
        ids = [1, *vocabulary.encode(before), *[PLACEHOLDER] * len(example.media), *vocabulary.encode(after)]
        tokens, _ = original.generate(ids, [_pixels(path) for path in example.media], 32)
        assert 2 in tokens
        assert given == vocabulary.decode(tokens[: tokens.index(2)])


def _pixels(path):
    if path.suffix != ".mp4":
        return original_image(np.asarray(Image.open(path).convert("RGB")), SIZE)
    frames = decode_all(path.read_bytes())
    return original_video(frames[np.linspace(0, len(frames) - 1, 8, dtype=int)], SIZE)


def test_the_checkpoint_is_as_small_as_the_readme_says():
    size = sum(path.stat().st_size for path in tiny_checkpoint().rglob("*"))
    assert size <= 12_000_000
    assert f"{size / 1e6:.0f} MB in all" in (ROOT / "README.md").read_text()


CARD = (tiny_checkpoint() / "README.md").read_text()


def test_the_model_cards_table():
    """It has the accuracy of the committed results, of every kind and in every type."""
    rows = RESULTS["tiny_accuracy"]
    ways = list(dict.fromkeys(row["way"] for row in rows))
    header, *table = re.findall(r"^\| (.+) \|$", CARD, re.MULTILINE)
    assert header.split(" | ") == ["question, about", "asked", *ways]
    table = [line.split(" | ") for line in table]
    assert [name for name, *_ in table] == sorted({row["case"] for row in rows})
    for name, asked, *shares in table:
        of_case = {row["way"]: row for row in rows if row["case"] == name}
        assert int(asked) == of_case[ways[0]]["n"]
        assert shares == [f"{100 * of_case[way]['right'] / of_case[way]['n']:.1f} %" for way in ways]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", BARS)
def test_the_results_meet_their_bars(kind, precision):
    """In every precision, and within one point of float32."""
    shares = {}
    for way in ("float32", precision):
        of_kind = [row for row in RESULTS["tiny_accuracy"] if row["way"] == way and re.match(rf"{kind}\b", row["case"])]
        shares[way] = sum(row["right"] for row in of_kind) / sum(row["n"] for row in of_kind)
    assert shares[precision] >= BARS[kind]
    assert abs(shares[precision] - shares["float32"]) <= 0.01
