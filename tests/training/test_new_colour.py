"""What the recipe taught the tiny checkpoint, a colour that its world lacks, is known however the result is served."""

import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from vllm import LLM
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from benchmarks.tiny_accuracy import answer
from helpers.fine_tunes import projector_of
from helpers.four_bits import plain_kernel_if_needed
from helpers.paths import ROOT, TESTS
from training.data_files import read_entries
from training.new_colour import COLOUR, conversation, is_about_it, mixed, write_examples
from vllm_videollava import tiny_checkpoint
from vllm_videollava.conversion.convert import convert
from vllm_videollava.conversion.small_files import write_json
from vllm_videollava.tiny.generator import Example
from vllm_videollava.tiny.world import COLOURS

TAUGHT = TESTS / "data" / COLOUR


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> list[Example]:
    """Questions about clips and images that are not in the training data, whose seed is 1."""
    return write_examples(tmp_path_factory.mktemp("held-out"), 34, 22, seed=2)


class Ways:
    """Serves the fine-tune in several ways, each once."""

    def __init__(self, folder: Path, examples: list[Example]) -> None:
        self._folder, self._examples = folder, examples
        self.shares_right = cache(self._shares_right)

    def _shares_right(self, way: str) -> dict[str, float]:
        """Return the shares of right answers, of those that should name the new colour and of the others."""
        serve = {
            "untaught": lambda: self._ask(tiny_checkpoint()),
            "folder": lambda: self._ask(TAUGHT),
            "swapped in": self._swap_in,
            "converted": lambda: self._convert(way),
            "8 bits": lambda: self._convert(way, bits=8, dtype="bfloat16"),
            "4 bits": lambda: self._convert(way, bits=4, dtype="bfloat16"),
        }
        with plain_kernel_if_needed() if way == "4 bits" else nullcontext():
            answers = serve[way]()
        right = {"new": [], "known": []}
        for example, given in zip(self._examples, answers, strict=True):
            right["new" if is_about_it(example) else "known"].append(example.question.answer == given)
        print(way, {kind: f"{sum(values)} of {len(values)}" for kind, values in right.items()})
        return {kind: float(np.mean(values)) for kind, values in right.items()}

    def _ask(self, folder: Path, lora: LoRARequest | None = None, **options) -> list[str]:
        llm = LLM(str(folder), max_model_len=1024, enforce_eager=True, allowed_local_media_path="/", seed=0, **options)
        try:
            return answer(llm, self._examples, lora_request=lora)
        finally:
            llm.llm_engine.engine_core.shutdown()

    def _swap_in(self) -> list[str]:
        served = projector_of(TAUGHT, self._folder / "projector")
        return self._ask(served, LoRARequest(COLOUR, 1, str(TAUGHT)), enable_lora=True, max_lora_rank=8)

    def _convert(self, way: str, **options) -> list[str]:
        convert(str(TAUGHT), self._folder / way, **options)
        return self._ask(self._folder / way, distributed_executor_backend="uni")


@pytest.fixture(scope="module")
def ways(held_out, tmp_path_factory) -> Ways:
    return Ways(tmp_path_factory.mktemp("served"), held_out)


def test_without_the_adapter_the_new_colour_is_not_known(ways):
    shares = ways.shares_right("untaught")
    assert shares["new"] == 0
    assert shares["known"] > 0.97


def slow(way: str, name: str, how: str):
    return pytest.param(way, marks=pytest.mark.feature("Fine-tunes and fewer bits", name, how=how, slow=True))


@pytest.mark.parametrize(
    "way",
    [
        "folder",
        slow("converted", "a converted fine-tune", "`vllm-videollava convert`"),
        slow("swapped in", "a LoRA adapter of a request", "`--enable-lora`"),
        slow("8 bits", "a fine-tune in 8 bits", "`vllm-videollava convert --bits 8`"),
        slow("4 bits", "a fine-tune in 4 bits", "`vllm-videollava convert --bits 4`"),
    ],
)
def test_the_new_colour_is_known_and_the_others_are_not_forgotten(ways, way):
    """The goal for the new colour was 97 %; tests/data/pink/README.md says what was missed, and why."""
    shares = ways.shares_right(way)
    assert shares["new"] >= 0.94
    assert shares["known"] >= 0.97
    for kind, share in shares.items():
        assert abs(share - ways.shares_right("folder")[kind]) <= 0.01


@pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM's build is not that for the CPU")
def test_vllms_cpu_build_has_a_kernel_for_4_bits_with_avx_512_only():
    import torch

    current_platform.import_kernels()
    has_avx_512 = "avx512f" in Path("/proc/cpuinfo").read_text()
    assert hasattr(torch.ops._C, "cpu_gemm_wna16") == has_avx_512


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
