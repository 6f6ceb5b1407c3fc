"""Reads data URLs and base64 in all the ways that programs write them."""

import binascii
import re

import pybase64

from vllm_videollava.decoding.errors import MediaError

HEADER_CHARACTERS = 4096
"""The data of a data URL must begin within this many characters."""

# Some programs write commas into parameters without quotes, as in "codecs=vp8,opus".
# An unquoted "data:" is already part of the data: an SVG that contains another data URL.
_PARAMETERS = r"""(?: ; (?: "(?:\\.|[^"\\])*" | (?!data:) [^;"] )* )*?"""
_HEADER = re.compile(rf"\s* data: ([^;,]*) {_PARAMETERS} ; \s* base64 \s* ,", re.VERBOSE | re.IGNORECASE)

_WHITE_SPACE = b" \t\n\r\f\v"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# The standard library decodes =2B quickly but %2B slowly, so "=" and "%" are swapped while it decodes.
_TO_QUOTED_PRINTABLE = bytes.maketrans(b"%=", b"=%")
_TO_STANDARD_ALPHABET = bytes.maketrans(b"-_%", b"+/=")

_UNQUOTED_AT_ONCE = 1 << 16

# Base64 of this length almost certainly contains a plus sign (99.9999 %).
_CHARACTERS_WITH_A_PLUS = 1024


def split_data_url(url: str) -> tuple[str, str]:
    """Split a data URL into its media type and its data, copying the data only once.

    Returns:
        The media type, in lower case and without parameters (it may be empty),
        and the data, as base64 for `decode_base64`.

    Raises:
        MediaError: the URL does not say that its data is base64.
    """
    header = url[:HEADER_CHARACTERS]
    if match := _HEADER.match(header):
        return match[1].strip().lower(), url[match.end() :]
    if "," not in header:
        raise MediaError("The data URL has no comma near its beginning; write data:type/subtype;base64,data.")
    raise MediaError("The data URL must have ;base64 right before its comma, as in data:type/subtype;base64,data.")


def decode_base64(kind: str, text: str) -> bytes:
    """Decode base64 with or without padding, line breaks and percent-encoding, in the standard or URL-safe alphabet.

    Args:
        kind: "image" or "video", for the error's sentence.

    Raises:
        MediaError: a character is not allowed in any of these, or the length shows that characters are missing.
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
    """The fault in a text that is not base64, as half a sentence."""


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
    return f"without white space and padding it has {len(digits)} characters, an impossible number; it may be cut off"


def _digits(text: str) -> bytearray:
    """Return the text in base64's standard alphabet, without white space; check nothing else."""
    if text[:2] in ("b'", 'b"'):
        raise _NotBase64Error("it begins with b and a quotation mark, as Python prints bytes; call decode() first")
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
    """Decode quoted-printable piece by piece; decoding it all at once takes three times the text's memory."""
    if b"=25" in quoted:
        raise _NotBase64Error("it is percent-encoded twice")
    unquoted, start = bytearray(), 0
    while start < len(quoted):
        end = start + _UNQUOTED_AT_ONCE
        escape_at_end = quoted.find(b"=", end - 2, end)
        end = escape_at_end if escape_at_end >= 0 else end
        unquoted += binascii.a2b_qp(quoted[start:end])
        start = end
    # An escape loses two bytes; a "=" that does not begin one loses none or one.
    if len(quoted) - len(unquoted) != 2 * quoted.count(b"="):
        raise _NotBase64Error("it has a % without two hexadecimal digits after it")
    return unquoted


def _plus_signs_are_spaces(text: str) -> bool:
    """Tell whether the text was decoded as form data, so that its spaces were plus signs and are not layout."""
    if len(text) < _CHARACTERS_WITH_A_PLUS or " " not in text.strip() or any(plus in text for plus in "+-%"):
        return False
    lines = text[:HEADER_CHARACTERS].split()[:-1]
    return len({len(line) for line in lines}) > 1
