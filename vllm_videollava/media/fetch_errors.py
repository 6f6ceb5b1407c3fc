"""Turns every error of fetching a medium into one sentence that reveals nothing about the network.

The log alone says which server is behind an address and why a connection fails:
with that knowledge a client could map the server's network.
"""

import http.client
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import aiohttp
import requests
import urllib3
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from vllm import connections
from vllm.exceptions import VLLMUnprocessableEntityError

from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.settings import variable
from vllm_videollava.media.temporary_errors import FetchError

MAX_URL_CHARACTERS = 8192
"""The maximum length of a URL that is not a data URL: while vLLM parses one, all requests wait."""

TRANSIENT_4XX = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
NO_ANSWER = "its server did not send a complete HTTP response; check the address, or try again later"
MALFORMED = "its address, or one that its server redirects to, is malformed"

# aiohttp raises these in the server; offline, requests does.
PERMANENT = {
    (ssl.SSLCertVerificationError,): "its server's certificate is not valid or not trusted",
    (ContentEncodingError, requests.exceptions.ContentDecodingError): (
        "its server's Content-Encoding is not supported, or the compressed data are damaged"
    ),
    (aiohttp.TooManyRedirects, requests.TooManyRedirects): "its server redirects too often",
    (aiohttp.NonHttpUrlRedirectClientError, requests.exceptions.InvalidSchema): (
        "its server redirects to an address that is neither http nor https"
    ),
}
TRANSIENT = (aiohttp.ClientError, OSError, urllib3.exceptions.HTTPError, http.client.HTTPException)
"""OSError includes time-outs and the errors of requests."""
# vLLM has this class since 0.33.
REQUEST_TOO_LARGE = getattr(connections, "MediaRequestDownloadSizeExceededError", ())


@contextmanager
def fetch_refusals(kind: str, url: str) -> Iterator[None]:
    """Turn any error of fetching or reading a medium, before it is decoded, into one sentence.

    Args:
        kind: "image" or "video".
        url: the URL as the client wrote it; checked before anything is fetched.

    Raises:
        MediaError: the medium cannot be fetched, and trying again will not help.
        FetchError: the medium cannot be fetched, but trying again may help.
    """
    try:
        _check_url(kind, url)
        yield
    except MediaError as refusal:
        refusal.url = url
        raise
    except Exception as error:
        refusal = translate(kind, url, error)
        if refusal is None:
            raise
        raise refusal from error


def translate(kind: str, url: str, error: Exception) -> MediaError | FetchError | None:
    """Translate an error into one for the client, or return None if it is not about fetching or reading."""
    detail = f"{_redact(url)}: {type(error).__name__}: {_redact(str(error))}"
    if _scheme(url) == "file":
        if not isinstance(error, ValueError | RuntimeError | OSError):
            return None
        sentence = f"The {kind} file cannot be read, or --allowed-local-media-path does not allow it."
        return MediaError(sentence, detail=detail, url=url)
    # vLLM wraps some errors in another error, whose message contains the address.
    cause = error.__cause__ if isinstance(error, VLLMUnprocessableEntityError) else error
    if reason := _permanent_reason(cause, is_wrapped=cause is not error):
        return MediaError(f"The {kind} cannot be fetched: {reason}.", detail=detail, url=url)
    if reason := _transient_reason(cause):
        return FetchError(f"The {kind} cannot be fetched: {reason}.", detail=detail, url=url)
    return None


def _check_url(kind: str, url: object) -> None:
    if not isinstance(url, str):
        raise MediaError(f"The {kind} has no address." if url is None else f"The {kind}'s address must be a string.")
    scheme = _scheme(url)
    if scheme not in ("http", "https", "data", "file"):
        raise MediaError(
            f"The {kind} cannot be fetched: its address must begin with http://, https://, data: or file://."
        )
    if scheme != "data" and len(url) > MAX_URL_CHARACTERS:
        raise MediaError(
            f"The {kind} cannot be fetched: its address has {len(url)} characters; the limit is {MAX_URL_CHARACTERS}."
        )


def _scheme(url: str) -> str:
    scheme, colon, _ = url[:64].lstrip().partition(":")
    return scheme.lower() if colon else ""


def _permanent_reason(error: BaseException | None, is_wrapped: bool) -> str | None:
    chain = list(_chain(error))
    for types, reason in PERMANENT.items():
        if any(isinstance(link, types) for link in chain):
            return reason
    if isinstance(error, connections.MediaDownloadSizeExceededError):
        return _too_large("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", error.max_bytes)
    if isinstance(error, connections.HTTPResponseSizeExceededError):
        return _too_large(variable("max_media_mb"), error.max_bytes)
    if isinstance(error, REQUEST_TOO_LARGE):
        return "the request's media are too large in total (VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB)"
    if (status := _status(error)) and status < 500 and status not in TRANSIENT_4XX:
        return _describe_status(status)
    if type(error) is ValueError and "allowed domains" in str(error):
        return "--allowed-media-domains does not allow its host"
    if isinstance(error, urllib3.exceptions.LocationParseError | UnicodeError) or (
        is_wrapped and isinstance(error, ValueError)
    ):
        return MALFORMED
    return None


def _transient_reason(error: BaseException | None) -> str | None:
    if status := _status(error):
        return f"{_describe_status(status)}; try again later"
    return NO_ANSWER if isinstance(error, TRANSIENT) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException | None) -> int | None:
    """Return the status of a server's answer, or None if the answer is not HTTP, for which aiohttp reports 400."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    if isinstance(error, aiohttp.ClientResponseError) and not isinstance(error, aiohttp.ClientHttpProxyError):
        return None if isinstance(error.__cause__, HttpProcessingError) else error.status
    return None


def _describe_status(status: int) -> str:
    phrase = f" ({HTTPStatus(status).phrase})" if status in set(HTTPStatus) else ""
    return f"its server answers with HTTP {status}{phrase}"


def _too_large(setting: str, max_bytes: int) -> str:
    return f"it is too large; the limit is {max_bytes} bytes ({setting})"


def _redact(text: str) -> str:
    """Prepare a text with URLs for the log: on one short line, without the parts of URLs that may be secret."""
    text = re.sub(r"//[^/\s]*@", "//", text[:1000])
    text = re.sub(r"[?#][^\s'\")]+", "?...", text)
    return text[:300].encode("unicode_escape").decode()
