"""The error for media that are refused, and the quoting of values in its sentence."""

import reprlib
from collections.abc import Mapping
from numbers import Number

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 1


class MediaError(ValueError):
    """One sentence about one image or video; vLLM's server sends it with HTTP 400.

    Args:
        sentence: what is wrong.
        detail: more about it, for the log only.
        url: the medium's URL, if the client gave one.
    """

    def __init__(self, sentence: str, *, detail: str | None = None, url: str | None = None) -> None:
        super().__init__(sentence)
        self.detail = detail
        self.url = url


def shorten(value: object) -> str:
    """Return a value from a request in a form that a sentence can quote: one line of at most 300 characters."""
    if not isinstance(value, (Number, str, Mapping, list, tuple, type(None))):
        return f"an object of type {type(value).__name__!r}"
    try:
        return _SHORT.repr(value)
    except ValueError:
        # Python does not print integers of more than 4300 digits.
        return "a very large number"
