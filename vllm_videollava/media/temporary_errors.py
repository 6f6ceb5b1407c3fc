"""Errors that may be gone later: vLLM's server answers with a status on which clients try again."""

from http import HTTPStatus
from typing import ClassVar

from vllm.exceptions import GracefulHTTPError


class TemporaryError(GracefulHTTPError):
    """One sentence about one image or video that nobody can be blamed for.

    Args:
        sentence: why, in coarse words.
        detail: more, for the log only.
        url: where the client said that the medium is, if it did.
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
    """No decoding process can be had."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
