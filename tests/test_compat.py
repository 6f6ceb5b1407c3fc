"""Each workaround in compat.py is still needed: a test that fails here says what can be removed."""

import dataclasses
import importlib.metadata
import inspect
import subprocess
import sys

import pytest
import torch
import vllm
from packaging.version import Version
from vllm.config import ParallelConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.llm import LLM
from vllm.entrypoints.openai.models import serving
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.model_executor.models.utils import _merge_multimodal_embeddings
from vllm.multimodal import registry
from vllm.renderers.base import BaseRenderer
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.input_processor import InputProcessor

from scripts.versions import read_supported
from vllm_videollava.compat import skip_rows_without_adapter
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.media.python_media import VideoLlavaDataParser
from vllm_videollava.plugin import VideoLlavaEngineDefaults

RENDERING = ("render_chat", "render_chat_async", "render_cmpl", "render_cmpl_async")


def is_installed(distribution: str) -> bool:
    return any(distribution == one.name for one in importlib.metadata.distributions())


@pytest.mark.skipif(is_installed("vllm"), reason="vLLM's CPU build is not what is installed")
def test_the_command_of_the_cpu_build_still_crashes():
    """When this fails, `name_cpu_distribution` can go."""
    code = "import sys; sys.argv = ['vllm', '--version']; from vllm.entrypoints.cli.main import main; main()"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.returncode == 1
    assert "PackageNotFoundError" in output.stderr


@pytest.mark.parametrize("method", RENDERING)
def test_renderers_still_do_not_know_the_request(method):
    """When this fails, `current_request_id`, `current_requests` or `current_prompt` can go."""
    known = {"self", "conversations", "prompts", "chat_params", "tok_params", "prompt_extras", "skip_mm_cache"}
    assert set(inspect.signature(getattr(BaseRenderer, method)).parameters) <= known


def test_the_loop_over_a_batch_still_has_the_variables_that_are_read():
    """When this fails, `current_prompt` finds no number any more, or vLLM has one of its own."""
    names = LLM._render_and_add_requests.__code__
    assert {"added_request_ids", "params"} <= {*names.co_varnames, *names.co_cellvars}


def test_the_number_of_api_servers_is_still_private():
    """When this fails, `api_process_count` can go."""
    names = {field.name for field in dataclasses.fields(ParallelConfig) if "api" in field.name}
    assert names == {"_api_process_count", "_api_process_rank"}


@pytest.mark.skipif(vllm.__version_tuple__ < (0, 31), reason="this vLLM does not cut expanded prompts")
def test_truncation_of_expanded_prompts_is_still_private():
    """When this fails, `TruncatingRenderer` can go, or has nothing to wrap."""
    assert {name for name in dir(BaseRenderer) if "truncate" in name} == {"_truncate_expanded_prompt"}


@pytest.mark.parametrize(
    ("workaround", "first_without"),
    [("VideosByIdParser", "0.30"), ("swaps_patterns", "0.32"), ("skip_rows_without_adapter", "0.33")],
)
def test_a_vllm_that_needs_the_workaround_is_still_supported(workaround, first_without):
    """When this fails, the workaround can go."""
    assert read_supported().lowest < Version(first_without)


def test_a_video_in_the_cache_may_be_named_by_its_id_alone():
    """vLLM then gives the parser None in its place; see `VideosByIdParser`."""
    parser = VideoLlavaDataParser(PixelFormat(1, 1, 8, True))
    items = parser.parse_mm_data({"image": [None], "video": [None]})
    assert [items[kind].get(0) for kind in ("image", "video")] == [None, None]


def test_the_engine_still_dies_of_a_bad_request():
    """When this fails, `check_all_engine_requests` may be able to go: see vllm-project/vllm#55546."""
    with pytest.raises(ValueError, match="multimodal tokens"):
        _merge_multimodal_embeddings(torch.zeros(4, 2), [torch.zeros(3, 2)], torch.ones(4, dtype=torch.bool))
    loop = inspect.getsource(EngineCoreProc.run_engine_core)
    assert "except Exception" in loop
    assert "_send_engine_dead" in loop


def test_the_wrapped_method_still_has_its_arguments():
    process_inputs = inspect.unwrap(InputProcessor.process_inputs)
    assert [*inspect.signature(process_inputs).parameters][:3] == ["self", "request_id", "prompt"]


@pytest.mark.parametrize("name", ["bgmv_expand", "bgmv_expand_slice"])
def test_the_cpu_build_took_no_adapter_for_the_last_one_until_0_33(name):
    """See vllm-project/vllm#48421, and `skip_rows_without_adapter`."""
    inputs, weights, indices = torch.ones(2, 1), torch.ones(1, 1, 3, 1), torch.tensor([0, -1])
    place = (0, 3) if name == "bgmv_expand_slice" else ()
    given, skipped = torch.zeros(2, 3), torch.zeros(2, 3)
    operator = inspect.unwrap(getattr(lora_ops, name))
    operator(inputs, weights, given, indices, *place, add_inputs=True)
    mistaken = 1 if vllm.__version_tuple__ < (0, 33) else 0
    assert given.tolist() == [[1, 1, 1], [mistaken] * 3]
    skip_rows_without_adapter()
    getattr(punica_cpu, name)(inputs, weights, skipped, indices, *place, add_inputs=True)
    assert skipped.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_the_tokenizer_is_still_loaded_before_a_model_may_name_another(monkeypatch, checkpoint):
    """When this fails, `prepare_model_configs` can go."""
    order = []
    cached = registry.cached_tokenizer_from_config
    monkeypatch.setattr(
        registry, "cached_tokenizer_from_config", lambda config: order.append("loaded") or cached(config)
    )
    verify = VideoLlavaEngineDefaults.verify_and_update_model_config
    monkeypatch.setattr(
        VideoLlavaEngineDefaults,
        "verify_and_update_model_config",
        staticmethod(lambda config: order.append("verified") or verify(config)),
    )
    EngineArgs(model=str(checkpoint)).create_model_config()
    assert order[0] == "loaded"


def test_a_model_still_cannot_refuse_an_adapter():
    """When this fails, `check_all_adapters` may be able to go."""
    load = inspect.getsource(inspect.unwrap(serving.OpenAIServingModels.load_lora_adapter))
    assert "INTERNAL_SERVER_ERROR" in load
    assert "renderer" not in load
