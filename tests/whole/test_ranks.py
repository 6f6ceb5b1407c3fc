"""Two ranks give the original's answers, with the towers' layers split among them or with whole towers on each."""

import os

import pytest

from helpers.asking import ask, clip, picture
from helpers.original_answer import STEPS, assert_same, pixels_of, reference_answer

MEDIA = [clip(1), picture(2), clip(3), clip(4), picture(5)]


def two_ranks(mode: str, name: str, *, slow: bool):
    how = f"`--tensor-parallel-size 2 --mm-encoder-tp-mode {mode}`, compared with the original"
    return pytest.param(mode, marks=pytest.mark.feature("Engine", name, how=how, slow=slow))


@pytest.fixture(
    scope="module",
    params=[
        two_ranks("weights", "tensor parallelism", slow=False),
        two_ranks("data", "tensor parallelism with whole towers on each rank", slow=True),
    ],
)
def llm(request, checkpoint):
    from vllm import LLM

    with pytest.MonkeyPatch.context() as patch:
        # Without this, vLLM's CPU build wants a NUMA node for each rank.
        cores = sorted(os.sched_getaffinity(0))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        llm = LLM(
            str(checkpoint),
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            tensor_parallel_size=2,
            mm_encoder_tp_mode=request.param,
        )
    yield llm
    llm.llm_engine.engine_core.shutdown()


def test_two_ranks_answer_as_the_original(llm, checkpoint):
    # Three videos cannot be divided equally between two ranks.
    reference = reference_answer(checkpoint, [pixels_of(medium) for medium in MEDIA], "What?")
    assert_same(ask(llm, MEDIA, "What?", STEPS), reference)
