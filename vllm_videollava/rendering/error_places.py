"""Adds to an error the request, prompt, message and part that it is about."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from vllm.logger import init_logger

from vllm_videollava.compat import current_prompt, current_request_id
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.media.temporary_errors import TemporaryError
from vllm_videollava.rendering.message_parts import find_part

MAX_FILE_NAME = 100

# Child of vLLM's logger, to inherit its handlers and level.
logger = init_logger(f"vllm.{__name__}")


@contextmanager
def logging_refusals() -> Iterator[None]:
    """Log an error about media with the id of its request."""
    try:
        yield
    except (MediaError, TemporaryError) as error:
        request_id = current_request_id()
        request = f"Request {request_id}" if request_id else "A request"
        logger.warning("%s refused: %s%s", request, error, f" ({error.detail})" if error.detail else "")
        raise


@contextmanager
def naming_part(conversations: Sequence[Sequence[Any]]) -> Iterator[None]:
    """Add the numbers of the message and the part to an error about a medium that a client named by its URL."""
    try:
        yield
    except (MediaError, TemporaryError) as error:
        places = (find_part(messages, error.url) for messages in conversations if error.url)
        if (place := next(filter(None, places), None)) is None:
            raise
        message, part = place
        sentence = f"Message {message}, part {part}: {error}"
        raise type(error)(sentence, detail=error.detail, url=error.url) from error


@contextmanager
def naming_prompt() -> Iterator[None]:
    """Add the number of the prompt, and the file's name, to an error about one of several offline prompts."""
    try:
        yield
    except (ValueError, TemporaryError) as error:
        number, count = current_prompt() or (1, 1)
        if count > 1 and error.args:
            # The error is changed in place, because vLLM's errors carry more than their sentence.
            file = _file_name(getattr(error, "url", None))
            sentence, *rest = error.args
            error.args = (f"Prompt {number}{file and f' ({file!r})'}: {sentence}", *rest)
        raise


def _file_name(url: str | None) -> str:
    if not url or url[:5].lower() == "data:":
        return ""
    return unquote(url.partition("?")[0].rpartition("/")[2])[-MAX_FILE_NAME:]
