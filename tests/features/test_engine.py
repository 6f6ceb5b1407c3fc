"""Features of vLLM's engine, each with right answers about clips and images."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file
from vllm.platforms import current_platform

from benchmarks.tiny_accuracy import answer
from helpers.asking import original_prompt
from helpers.tiny_world import about, draw
from vllm_videollava import tiny_checkpoint
from vllm_videollava.tiny.generator import Example

if TYPE_CHECKING:
    from vllm import LLM


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return draw(tmp_path_factory.mktemp("examples"))


@contextmanager
def started(**options) -> Iterator["LLM"]:
    from vllm import LLM

    settings = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "allowed_local_media_path": "/"}
    with pytest.MonkeyPatch.context() as patch:
        # Without this, vLLM's CPU build wants a NUMA node for each rank.
        cores = sorted(os.sched_getaffinity(0))
        if {"tensor_parallel_size", "pipeline_parallel_size"} & options.keys():
            patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        llm = LLM(str(tiny_checkpoint()), **{**settings, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def share_right(examples: list[Example], answers: list[str]) -> float:
    right = [example.question.answer == given for example, given in zip(examples, answers, strict=True)]
    return sum(right) / len(right)


def right_answers(examples: list[Example], **options) -> float:
    """Return the share of right answers of an engine with some options."""
    with started(**options) as llm:
        return share_right(examples, answer(llm, examples))


def row(name: str, how: str, least: float = 1.0, only_if=(), **options):
    """Make the case of a feature that is only a matter of options."""
    mark = pytest.mark.feature("Engine", name, how=how, slow=True)
    return pytest.param(options, least, id=name, marks=[mark, *([only_if] if only_if else [])])


@pytest.mark.parametrize(
    ("options", "least"),
    [
        row("torch.compile", "without `--enforce-eager`", enforce_eager=False),
        row(
            "pipeline parallelism",
            "`--pipeline-parallel-size 2`; on a CPU not with `--enforce-eager`, of which vLLM 0.32 dies",
            pipeline_parallel_size=2,
            enforce_eager=False,
        ),
        row("chunked prefill that cuts a video", "`--max-num-batched-tokens 128`", max_num_batched_tokens=128),
        row(
            "no caches",
            "`--no-enable-prefix-caching --mm-processor-cache-gb 0`",
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
        ),
        row("processor cache in shared memory", "`--mm-processor-cache-type shm`", mm_processor_cache_type="shm"),
        row(
            "speculation by n-grams",
            "`--speculative-config`, method ngram, 3 tokens",
            speculative_config={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
        ),
        row(
            "KV cache in fp8",
            "`--kv-cache-dtype fp8`",
            least=0.95,
            only_if=pytest.mark.skipif(
                current_platform.is_cpu() and "avx512f" not in Path("/proc/cpuinfo").read_text(),
                reason="vLLM's CPU build needs AVX-512 for it",
            ),
            kv_cache_dtype="fp8",
        ),
        row("bfloat16", "`--dtype bfloat16`", least=0.95, dtype="bfloat16"),
        row("float16", "`--dtype float16`", least=0.95, dtype="float16"),
        row("async scheduling", "`--async-scheduling`", async_scheduling=True),
        row("no async scheduling", "`--no-async-scheduling`", async_scheduling=False),
        row(
            "another attention for the towers",
            "`--mm-encoder-attn-backend TORCH_SDPA`",
            mm_encoder_attn_backend="TORCH_SDPA",
        ),
        row(
            "longer context by RoPE scaling",
            "`--hf-overrides` with `rope_parameters` in `text_config`, linear, factor 2: the rotation is slower, so "
            "answers may change",
            least=0.0,
            max_model_len=2048,
            hf_overrides={
                "text_config": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
            },
        ),
    ],
)
def test_an_option_keeps_answers_right(examples, options, least, record_property):
    share = right_answers(examples, **options)
    if least < 1:
        record_property("detail", f"{100 * share:.0f} % of {len(examples)} answers are right")
    assert share >= least


@pytest.mark.feature("Engine", "no images", how="`--limit-mm-per-prompt '{\"image\": 0}'`", slow=True)
def test_a_modality_that_is_not_wanted(examples):
    videos = [example for example in examples if set(example.kinds) == {"video"}]
    assert right_answers(videos, limit_mm_per_prompt={"image": 0}) == 1


@pytest.mark.feature(
    "Engine",
    "encoder disaggregation",
    how="an engine with `ec_role` ec_producer writes embeddings to a folder, and another, ec_consumer, reads them",
    slow=True,
)
def test_one_engine_encodes_and_another_answers(examples, tmp_path):
    from vllm.config import ECTransferConfig

    def role(name: str) -> dict:
        folder = {"shared_storage_path": str(tmp_path)}
        config = ECTransferConfig(ec_connector="ECExampleConnector", ec_role=name, ec_connector_extra_config=folder)
        return {"ec_transfer_config": config, "enable_prefix_caching": False}

    asked = [about(examples, "video"), about(examples, "image")]
    with started(**role("ec_producer")) as producer:
        answer(producer, asked)
    written = list(tmp_path.rglob("*.safetensors"))
    assert len(written) == 2
    with started(**role("ec_consumer")) as consumer:
        assert share_right(asked, answer(consumer, asked)) == 1
    for path in written:
        save_file({name: tensor.zero_() for name, tensor in load_file(path).items()}, path)
    with started(**role("ec_consumer")) as consumer:
        assert share_right(asked, answer(consumer, asked)) < 1


@pytest.fixture(scope="module")
def engine():
    with started(enable_prompt_embeds=True) as llm:
        yield llm


@pytest.mark.feature("Engine", "beam search", how="`LLM.beam_search`, the best of two beams", slow=True)
def test_beam_search(engine, examples):
    from vllm.sampling_params import BeamSearchParams

    example = about(examples, "video")
    media = {"video": [Path(example.media[0])]}
    prompt = {"prompt": original_prompt("<video>", example.question.text), "multi_modal_data": media}
    (result,) = engine.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=16))
    assert result.sequences[0].text.partition("ASSISTANT:")[2].removesuffix("</s>").strip() == example.question.answer


@pytest.mark.feature(
    "Engine", "embeddings of a prompt", how="`--enable-prompt-embeds`; the answer is that to the text", slow=True
)
def test_embeddings_of_a_prompt(engine):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompt = original_prompt("", "What is a dog?")
    (asked,) = engine.generate([prompt], params, use_tqdm=False)
    table = load_file(tiny_checkpoint() / "model.safetensors")["model.embed_tokens.weight"].float()
    (given,) = engine.generate([{"prompt_embeds": table[asked.prompt_token_ids]}], params, use_tqdm=False)
    assert given.outputs[0].token_ids == asked.outputs[0].token_ids
