"""Data URLs and base64 as programs write them."""

import binascii
import re

import pybase64

from vllm_videollava.decoding.errors import MediaError

HEADER_CHARACTERS = 4096
"""Longest beginning of a data URL in which its data must begin."""

# Some programs write commas into parameters without quotes, as in "codecs=vp8,opus".
# An unquoted "data:" is already data: that of an SVG with another data URL in it.
_PARAMETERS = r"""(?: ; (?: "(?:\\.|[^"\\])*" | (?!data:) [^;"] )* )*?"""
_HEADER = re.compile(rf"\s* data: ([^;,]*) {_PARAMETERS} ; \s* base64 \s* ,", re.VERBOSE | re.IGNORECASE)

_WHITE_SPACE = b" \t\n\r\f\v"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# The standard library decodes =2B quickly, and %2B slowly. Padding changes places with the percent sign meanwhile.
_TO_QUOTED_PRINTABLE = bytes.maketrans(b"%=", b"=%")
_TO_STANDARD_ALPHABET = bytes.maketrans(b"-_%", b"+/=")

_UNQUOTED_AT_ONCE = 1 << 16

# Base64 of this length almost surely contains a plus sign (99.9999 %).
_CHARACTERS_WITH_A_PLUS = 1024


def split_data_url(url: str) -> tuple[str, str]:
    """Split a data URL, whose length costs no more than one copy of its data.

    Returns:
        The media type in lower case, without parameters, which may be empty,
        and the data, base64 that `decode_base64` takes.

    Raises:
        MediaError: the data is not said to be base64.
    """
    header = url[:HEADER_CHARACTERS]
    if match := _HEADER.match(header):
        return match[1].strip().lower(), url[match.end() :]
    if "," not in header:
        raise MediaError("The data URL has no comma near its beginning; write data:type/subtype;base64,data.")
    raise MediaError(
        "The data URL does not have ;base64 right before its comma, and nothing else is supported; "
        "write data:type/subtype;base64,data."
    )


def decode_base64(kind: str, text: str) -> bytes:
    """Decode base64 with or without padding, line breaks and percent-encoding, in the standard or URL-safe alphabet.

    Args:
        kind: "image" or "video", for the sentence.

    Raises:
        MediaError: a character belongs to none of these, or the length shows that some are missing.
    """
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        pass
    if text[:HEADER_CHARACTERS].lstrip()[:5].lower() == "data:":
        text = split_data_url(text)[1]
    try:
        return _decode_leniently(text)
    except _NotBase64Error as error:
        raise MediaError(f"The {kind} is not valid base64: {error}.") from error


class _NotBase64Error(Exception):
    """Says what is wrong, in half a sentence."""


def _decode_leniently(text: str) -> bytes:
    digits = _digits(text.removeprefix("\ufeff"))
    num_padding = digits.count(b"=")
    num_digits = len(digits) - num_padding
    if num_padding and digits.find(b"=") == num_digits:
        del digits[num_digits:]
    digits += b"=" * (-num_digits % 4)
    try:
        return pybase64.b64decode(digits, validate=True)
    except ValueError:
        raise _NotBase64Error(_find_fault(text, digits.rstrip(b"="))) from None


def _find_fault(text: str, digits: bytearray) -> str:
    if other := digits.translate(None, _ALPHABET + b"=")[:1].decode("latin-1"):
        place = f"its character {text.index(other) + 1}" if other in text else "a percent-encoded character"
        return f"{place} is {other!r}"
    if b"=" in digits:
        return "it has padding (=) before its end"
    return f"its length without white space and padding is {len(digits)}, which no data has; it may be cut off"


def _digits(text: str) -> bytearray:
    """Return the text in base64's standard alphabet, without white space; check nothing else."""
    if text[:2] in ("b'", 'b"'):
        raise _NotBase64Error("it begins with b and a quotation mark, as Python prints bytes; decode() gives the text")
    if _plus_signs_are_spaces(text):
        raise _NotBase64Error("it has spaces instead of plus signs; in a URL or a form, + is written %2B")
    try:
        digits = bytearray(text, "ascii").translate(_TO_QUOTED_PRINTABLE, _WHITE_SPACE)
    except UnicodeEncodeError as error:
        raise _NotBase64Error(f"its character {error.start + 1} is {text[error.start]!r}") from None
    if b"=" in digits:
        digits = _unquote(digits)
    return digits.translate(_TO_STANDARD_ALPHABET, _WHITE_SPACE)


def _unquote(quoted: bytearray) -> bytearray:
    """Decode quoted-printable piece by piece, because all at once takes three times the memory of the text."""
    if b"=25" in quoted:
        raise _NotBase64Error("it is percent-encoded twice")
    unquoted, start = bytearray(), 0
    while start < len(quoted):
        end = start + _UNQUOTED_AT_ONCE
        escape_at_end = quoted.find(b"=", end - 2, end)
        end = escape_at_end if escape_at_end >= 0 else end
        unquoted += binascii.a2b_qp(quoted[start:end])
        start = end
    # Text that is not an escape stays as it is or loses one byte.
    if len(quoted) - len(unquoted) != 2 * quoted.count(b"="):
        raise _NotBase64Error("it has a % without two hexadecimal digits after it")
    return unquoted


def _plus_signs_are_spaces(text: str) -> bool:
    """Tell whether the text was decoded as a form's; then the spaces stand where data was, and are not layout."""
    if len(text) < _CHARACTERS_WITH_A_PLUS or " " not in text.strip() or any(plus in text for plus in "+-%"):
        return False
    lines = text[:HEADER_CHARACTERS].split()[:-1]
    return len({len(line) for line in lines}) > 1
