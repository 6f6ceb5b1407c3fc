"""Checks for values that JSON may have, but that cannot be brought to the engine."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from vllm_videollava.request_options import shorten

MAX_NESTING = 100
"""Lists and objects within one another; vLLM's own limit for JSON schemas is 64."""


def check_text(name: str, text: str | None) -> None:
    """Refuse halves of a character, which can neither be hashed nor sent.

    Raises:
        ValueError: the text has some.
    """
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is {shorten(text)}, which is not valid Unicode.") from error


def check_nesting(request: BaseModel) -> None:
    """Refuse what is nested so deep that the engine dies when it hands it on to its workers.

    Raises:
        ValueError: a field is.
    """
    for name, value in vars(request).items():
        level = [value]
        for _ in range(MAX_NESTING + 1):
            level = [child for node in level for child in _children(node) if _children(child)]
        if level:
            raise ValueError(f"{name} nests lists and objects more than {MAX_NESTING} deep.")


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    if isinstance(node, (list, tuple)):
        return node
    if isinstance(node, BaseModel) or dataclasses.is_dataclass(node):
        return vars(node).values()
    return ()
