"""An adapter answers alike as a served folder, on two ranks, and swapped in, and requests with several do not mix."""

import os
import re
import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from vllm.exceptions import VLLMValidationError

from helpers.asking import answer_of, ask, clip, parts, picture
from helpers.fine_tunes import change_adapter_config, projector_of, write_lora
from helpers.original_answer import STEPS, assert_same, pixels_of, reference_answer
from vllm_videollava.conversion.convert import convert

MEDIA = [clip(1), picture(2)]
QUESTION = "What does the video show?"
SWAPPING = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}


@pytest.fixture(scope="module")
def tuned(checkpoint, tmp_path_factory):
    """Fine-tunes: one with its own projector, and two with the base's."""
    root = tmp_path_factory.mktemp("tuned")
    return {
        "own projector": write_lora(root / "own", checkpoint, lora_alpha=8),
        "a": write_lora(root / "a", checkpoint, seed=1, projector=False, lora_alpha=8),
        "b": write_lora(root / "b", checkpoint, seed=2, projector=False, use_rslora=True),
    }


@contextmanager
def engine(folder, **options):
    from vllm import LLM

    llm = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=1024, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def reference(folder):
    return reference_answer(folder, [pixels_of(medium) for medium in MEDIA], QUESTION)


def swap_in(tuned, name: str):
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, list(tuned).index(name) + 1, str(tuned[name].folder))


@pytest.mark.parametrize(
    "ranks",
    [
        1,
        pytest.param(
            2,
            marks=pytest.mark.feature(
                "Fine-tunes and fewer bits",
                "fine-tunes with tensor parallelism",
                how="`--tensor-parallel-size 2`, served, converted and swapped in, compared with a merge by PEFT",
                slow=True,
            ),
        ),
    ],
)
def test_served_converted_swapped_in_and_merged_by_peft_agree(tuned, ranks, tmp_path, monkeypatch):
    if ranks > 1:
        cores = sorted(os.sched_getaffinity(0))
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    folder, whole = tuned["own projector"]
    convert(str(folder), tmp_path / "converted")
    answers = []
    for served in (whole, folder, tmp_path / "converted"):
        with engine(served, tensor_parallel_size=ranks) as llm:
            answers.append(ask(llm, MEDIA, QUESTION, STEPS))
    with engine(projector_of(folder, tmp_path / "projector"), tensor_parallel_size=ranks, **SWAPPING) as llm:
        answers.append(ask(llm, MEDIA, QUESTION, STEPS, lora_request=swap_in(tuned, "own projector")))
    assert_same(answers[0], reference(whole))
    for tokens, logprobs in answers[1:]:
        assert tokens == answers[0][0]
        assert logprobs == pytest.approx(answers[0][1], abs=1e-4)


@pytest.fixture(scope="module")
def swapping(checkpoint):
    with engine(checkpoint, **SWAPPING) as llm:
        yield llm


@pytest.mark.feature(
    "Fine-tunes and fewer bits",
    "several LoRA adapters and the base in one batch",
    how="`--enable-lora`, compared with adapters merged by PEFT",
)
def test_adapters_and_the_base_in_one_batch_do_not_mix(swapping, tuned, checkpoint):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=STEPS, logprobs=1, ignore_eos=True)
    names = ["a", None, "b", "b", "a", None]
    chats = [[{"role": "user", "content": parts(MEDIA, QUESTION)}] for _ in names]
    requests = [name and swap_in(tuned, name) for name in names]
    outputs = swapping.chat(chats, params, lora_request=requests, use_tqdm=False)
    for name, output in zip(names, outputs, strict=True):
        assert_same(answer_of(output), reference(tuned[name].whole if name else checkpoint))


def test_a_projector_that_cannot_be_swapped_is_refused(swapping, tuned):
    name = re.escape(tuned["own projector"].folder.name)
    sentence = rf"^The adapter '{name}' cannot be loaded: .* another projector than the served model"
    with pytest.raises(VLLMValidationError, match=sentence):
        ask(swapping, MEDIA, QUESTION, STEPS, lora_request=swap_in(tuned, "own projector"))
    ask(swapping, MEDIA, QUESTION, 1)


def test_the_served_projector_is_accepted(swapping, tuned, checkpoint, tmp_path):
    from vllm.lora.request import LoRARequest

    folder = shutil.copytree(tuned["a"].folder, tmp_path / "a")
    projector = {name: x for name, x in load_file(checkpoint / "model.safetensors").items() if "mm_projector" in name}
    # As training in bfloat16 saves it.
    own = {f"base_model.model.{name}": tensor.bfloat16() for name, tensor in projector.items()}
    torch.save(own, folder / "non_lora_trainables.bin")
    assert_same(
        ask(swapping, MEDIA, QUESTION, STEPS, lora_request=LoRARequest("copy", 9, str(folder))),
        reference(tuned["a"].whole),
    )


REFUSED = {
    "rank": ({"r": 64}, "has rank 64; start the server with --max-lora-rank 64"),
    "kind": ({"use_dora": True}, "use_dora is True; adapters that use it are not supported"),
}


@pytest.mark.parametrize(("values", "sentence"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_that_the_engine_would_die_of_is_refused(swapping, tuned, tmp_path, values, sentence):
    from vllm.lora.request import LoRARequest

    folder = change_adapter_config(shutil.copytree(tuned["a"].folder, tmp_path / "a"), **values)
    with pytest.raises(VLLMValidationError, match=re.escape(sentence)):
        ask(swapping, MEDIA, QUESTION, 1, lora_request=LoRARequest("bad", 8, str(folder)))
    ask(swapping, MEDIA, QUESTION, 1)
