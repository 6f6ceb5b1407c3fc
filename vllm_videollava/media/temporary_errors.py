"""Errors that may be gone later; vLLM's server sends them with a status that makes clients try again."""

from http import HTTPStatus
from typing import ClassVar

from vllm.exceptions import GracefulHTTPError


class TemporaryError(GracefulHTTPError):
    """One sentence about one image or video, for a failure that is not the client's fault.

    Args:
        sentence: the reason, in coarse words.
        detail: more about it, for the log only.
        url: the medium's URL, if the client gave one.
    """

    status: ClassVar[HTTPStatus]

    def __init__(self, sentence: str, *, detail: str | None = None, url: str | None = None) -> None:
        super().__init__(sentence, self.status)
        self.detail = detail
        self.url = url


class FetchError(TemporaryError):
    """The medium's own server does not answer."""

    status = HTTPStatus.BAD_GATEWAY


class DecodeError(TemporaryError):
    """No decoding process is available."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
