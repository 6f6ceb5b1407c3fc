"""Checks for values that JSON allows but the engine cannot receive."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import msgspec
from pydantic import BaseModel

from vllm_videollava.decoding.errors import shorten
from vllm_videollava.text.unicode import check_text

MAX_NESTING = 100
"""Maximum depth of nested lists and objects; vLLM's own limit for JSON schemas is 64."""

# Fields that become token ids or have their own checks; the others go to the engine with the sampling parameters.
_NOT_SENT = {
    *("messages", "prompt", "input", "query", "items", "system", "instructions", "tools", "documents"),
    *("chat_template", "media_io_kwargs", "mm_processor_kwargs"),
}

# vLLM adds these fields to vllm_xargs, where all other values are texts and numbers.
_TRANSFERS = {"kv_transfer_params", "ec_transfer_params"}


def check_request(request: BaseModel) -> None:
    """Check a request, given as vLLM's class for it.

    Raises:
        ValueError: a field is nested so deeply that the engine would die when
            it hands the field on to its workers, has a number or text that
            cannot be sent, or is hidden in another field.
    """
    extras = getattr(request, "vllm_xargs", None) or {}
    for name in _TRANSFERS & extras.keys():
        if extras[name] is not getattr(request, name, None):
            raise ValueError(f"The field vllm_xargs has {name!r}, which must be a field of the request itself.")
    for name, value in vars(request).items():
        check_value(f"The field {name}", value, is_sent=name not in _NOT_SENT)


def check_value(subject: str, value: Any, *, is_sent: bool = True) -> None:
    """Check one field of a request, or the parameters that vLLM makes of it; see `check_request`.

    Args:
        subject: the subject of the error's sentence.
        is_sent: whether its numbers and texts are sent to the engine.
    """
    level = [value]
    for _ in range(MAX_NESTING + 1):
        if is_sent:
            _check_leaves(subject, level)
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"{subject} is nested too deeply; the limit is {MAX_NESTING} levels.")


def _check_leaves(subject: str, values: list[Any]) -> None:
    for value in values:
        if isinstance(value, str):
            check_text(subject, value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(f"{subject} has {shorten(value)}; whole numbers must fit into 64 bits.")


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, BaseModel) or dataclasses.is_dataclass(node):
        node = vars(node)
    if isinstance(node, msgspec.Struct):
        node = msgspec.structs.asdict(node)
    if isinstance(node, dict):
        yield from node
        for key, value in node.items():
            yield _parse(value) if key == "arguments" else value
    elif isinstance(node, (list, tuple)):
        yield from node


def _parse(arguments: Any) -> Any:
    """Parse the arguments of a tool call, as vLLM will."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except RecursionError as error:
        raise ValueError(
            f"A tool call's arguments are nested too deeply; the limit is {MAX_NESTING} levels."
        ) from error
    except ValueError:
        return arguments
