"""What the recipe taught the tiny checkpoint: a colour that its world lacks, with all that it knew before."""

import re

import numpy as np
import pytest
from vllm import LLM

from benchmarks.tiny_accuracy import answer
from helpers.paths import ROOT, TESTS
from training.data_files import read_entries
from training.new_colour import COLOUR, conversation, is_about_it, mixed, write_examples
from vllm_videollava import tiny_checkpoint
from vllm_videollava.conversion.small_files import write_json
from vllm_videollava.tiny.generator import Example
from vllm_videollava.tiny.world import COLOURS

TAUGHT = TESTS / "data" / "pink"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> list[Example]:
    """Questions about clips and images that are not in the training data, whose seed is 1."""
    return write_examples(tmp_path_factory.mktemp("held-out"), 40, 24, seed=2)


def share_right(examples: list[Example], answers: list[str], new: bool) -> float:
    right = [
        example.question.answer == given
        for example, given in zip(examples, answers, strict=True)
        if is_about_it(example) == new
    ]
    assert len(right) > 80
    return float(np.mean(right))


@pytest.mark.parametrize(
    ("folder", "new", "known"), [(TAUGHT, (0.9, 1), (0.97, 1)), (tiny_checkpoint(), (0, 0), (0.9, 1))]
)
def test_the_new_colour_is_learnt_and_the_rest_is_not_forgotten(held_out, folder, new, known):
    llm = LLM(
        str(folder),
        tokenizer=str(tiny_checkpoint()),
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        allowed_local_media_path="/",
    )
    answers = answer(llm, held_out)
    llm.llm_engine.engine_core.shutdown()
    shares = {kind: share_right(held_out, answers, kind == "new") for kind in ("new", "known")}
    print(shares)
    assert new[0] <= shares["new"] <= new[1]
    assert known[0] <= shares["known"] <= known[1]


def test_the_taught_adapter_is_small():
    assert sum(path.stat().st_size for path in TAUGHT.iterdir()) < 300_000


def test_the_data_are_as_the_recipe_wants_them(held_out):
    assert COLOUR not in COLOURS
    folder = held_out[0].media[0].parent
    examples = mixed(held_out, seed=1)
    assert len(examples) == 2 * sum(map(is_about_it, held_out))
    write_json(folder / "data.json", [conversation(number, example) for number, example in enumerate(examples)])
    entries, faults = read_entries([folder / "data.json"], folder)
    assert not faults
    for entry, example in zip(entries, examples, strict=True):
        assert entry.media == tuple(zip(example.kinds, example.media, strict=True))
        question, given = entry.messages
        assert question["content"][-1]["text"] == example.question.text
        assert given["content"] == example.question.answer


def test_the_readme_of_the_adapter_has_the_command():
    text = (TAUGHT / "README.md").read_text()
    assert re.search(r"python -m training\.finetune_lora .*--rank 8", text, re.DOTALL)
    assert (ROOT / "training" / "finetune_lora.py").exists()
