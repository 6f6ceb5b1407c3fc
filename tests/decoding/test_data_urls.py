"""Data URLs and base64, as the programs that write them do."""

import base64
import email.message
import json
import random
import subprocess
import textwrap
import tracemalloc
import urllib.parse

import pytest

from vllm_videollava.decoding.data_urls import decode_base64, split_data_url
from vllm_videollava.decoding.errors import MediaError

MIB = 1 << 20
# Every byte, in an order in which base64 has each of its characters, and of each length modulo 3.
DATA = [random.Random(0).randbytes(4096 + length) for length in range(3)]

HEADERS = {
    "plain": ("data:video/mp4;base64,", "video/mp4"),
    "of a recorder in a browser": ("data:video/webm;codecs=vp8,opus;base64,", "video/webm"),
    "of a recorder, with white space": ("data:video/webm; codecs=vp8, opus; base64,", "video/webm"),
    "quoted": ('data:video/mp4;codecs="avc1.42E01E, mp4a.40.2";base64,', "video/mp4"),
    "a quoted name that looks like a header": ('data:video/mp4;name="a;base64,b \\" c";base64,', "video/mp4"),
    "charset": ("data:image/png;charset=utf-8;base64,", "image/png"),
    "name": ("data:video/mp4;name=a,b (1).mp4;base64,", "video/mp4"),
    "percent-encoded name": ("data:image/png;name=a%2Cb%3B%20c.png;base64,", "image/png"),
    "several": ("data:video/3gpp;name=x.3gp;charset=binary;codecs=a,b;base64,", "video/3gpp"),
    "upper case": ("DATA:IMAGE/PNG;BASE64,", "image/png"),
    "space before": (" \r\n data:image/png;base64,", "image/png"),
    "space within": ("data: image/png ; base64 ,", "image/png"),
    "no media type": ("data:;base64,", ""),
    "only a parameter": ("data:;charset=utf-8;base64,", ""),
    "a suffix": ("data:image/svg+xml;base64,", "image/svg+xml"),
    "as long as may be": (f"data:video/mp4;name={'a' * 4000};base64,", "video/mp4"),
}


@pytest.mark.parametrize("data", ["", "AAAA", ";base64,", "A,B;base64,C", "data:image/png;base64,AAAA", "A" * 10_000])
@pytest.mark.parametrize("name", HEADERS)
def test_headers(name, data):
    header, media_type = HEADERS[name]
    assert split_data_url(header + data) == (media_type, data)


def svg(href: str = "") -> str:
    return f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{href}'/></svg>"


INNER = "data:image/png;base64,AAAA"
NOT_BASE64 = {
    "nothing": "data:,",
    "text": "data:,Hello%2C%20World!",
    "text with parameter": "data:text/plain;charset=UTF-8,the%20data",
    "svg": f"data:image/svg+xml,{urllib.parse.quote(svg())}",
    "svg that is not encoded": f"data:image/svg+xml;utf8,{svg()}",
    "svg with an image in it": f"data:image/svg+xml,{urllib.parse.quote(svg(INNER), safe=':;,/')}",
    "svg with a parameter and an image in it": f"data:image/svg+xml;utf8,{svg(INNER)}",
    "encoded svg with both": f"data:image/svg+xml;utf8,{urllib.parse.quote(svg(INNER), safe=':;,/')}",
    "percent-encoded bytes": f"data:image/png,{urllib.parse.quote_from_bytes(DATA[0])}",
    "comma for semicolon": "data:image/png,base64,AAAA",
    "no media type and no semicolon": "data:base64,AAAA",
    "a parameter called base64": "data:image/png;base64=yes,AAAA",
    "base64 elsewhere": "data:image/png;base64;charset=utf-8,AAAA",
    "base32": "data:image/png;base32,AAAA",
}


@pytest.mark.parametrize("name", NOT_BASE64)
def test_data_urls_that_are_not_base64(name):
    with pytest.raises(MediaError, match=r"^The data URL must have ;base64 right before its comma, as in data:"):
        split_data_url(NOT_BASE64[name])


@pytest.mark.parametrize(
    "url",
    ["data:", "data:video/mp4;base64", "data:AAAA", "data:a;name=" + "a" * 5000 + ";base64,", "data:" + "A" * MIB],
)
def test_data_urls_without_comma(url):
    with pytest.raises(MediaError, match=r"^The data URL has no comma near its beginning; write data:"):
        split_data_url(url)


def in_lines(data: bytes, width: int, end: str, indent: str = "") -> str:
    return "".join(indent + line + end for line in textwrap.wrap(base64.b64encode(data).decode(), width))


def as_mail(data: bytes) -> str:
    message = email.message.EmailMessage()
    message.set_content(data, maintype="video", subtype="mp4")
    return message.get_payload()


def of_command(*command: str):
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode()


WRITERS = {
    "Python": lambda data: base64.b64encode(data).decode(),
    "encodebytes": lambda data: base64.encodebytes(data).decode(),
    "base64 -w76": of_command("base64", "-w76"),
    "mail": as_mail,
    "MIME": lambda data: in_lines(data, 76, "\r\n"),
    "PEM": lambda data: in_lines(data, 64, "\n"),
    "old Mac": lambda data: in_lines(data, 76, "\r"),
    "YAML": lambda data: in_lines(data, 80, "\n", "    "),
    "folded YAML": lambda data: in_lines(data, 80, " "),
    "tabs": lambda data: in_lines(data, 60, "\r\n", "\t"),
    "lines between lines": lambda data: "\n\n" + in_lines(data, 60, " \n \n"),
    "in quadruples": lambda data: in_lines(data, 4, " "),
    "JSON with line breaks": lambda data: json.loads(json.dumps(in_lines(data, 76, "\n"))),
    "without padding": lambda data: base64.b64encode(data).decode().rstrip("="),
    "too much padding": lambda data: base64.b64encode(data).decode() + "==",
    "padding on its own line": lambda data: base64.b64encode(data).decode().rstrip("=") + "\n=\n=\n",
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "URL-safe without padding": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "URL-safe in lines": lambda data: in_lines(data, 76, "\n").translate({ord("+"): "-", ord("/"): "_"}),
    "half URL-safe": lambda data: base64.b64encode(data).decode().replace("+", "-"),
    "encodeURIComponent": lambda data: urllib.parse.quote(base64.b64encode(data), safe="!~*'()"),
    "encodeURIComponent, lower case": lambda data: urllib.parse.quote(base64.b64encode(data), safe="").replace(
        "%2B", "%2b"
    ),
    "encodeURIComponent of lines": lambda data: urllib.parse.quote(in_lines(data, 76, "\r\n"), safe=""),
    "escaped line breaks": lambda data: in_lines(data, 76, "%0D%0A"),
    "all percent-encoded": lambda data: "".join(f"%{ord(digit):02x}" for digit in base64.b64encode(data).decode()),
    "byte order mark": lambda data: base64.b64encode(data).decode("utf-8-sig").join(["\ufeff", "\r\n"]),
    "another data URL": lambda data: "data:video/mp4;base64," + base64.b64encode(data).decode(),
    "another data URL in lines": lambda data: " data:video/webm;codecs=vp8,opus;base64," + in_lines(data, 76, "\n"),
}


@pytest.mark.parametrize("data", [*DATA, b"", b"a", b"ab", b"\xff\xfe\xfd", bytes(2000)], ids=len)
@pytest.mark.parametrize("name", WRITERS)
def test_base64_of_many_writers(name, data):
    assert decode_base64("video", WRITERS[name](data)) == data


GOOD = base64.b64encode(DATA[0]).decode()
BAD_BASE64 = {
    "another character": (f"{GOOD[:10]}@{GOOD[11:]}", "its character 11 is '@'"),
    "another character more": (f"{GOOD[:20]}!{GOOD[20:]}", "its character 21 is '!'"),
    "after lines": (in_lines(DATA[0], 76, "\n") + "#t=1", "its character 5537 is '#'"),
    "a letter": ("AAAé", "its character 4 is 'é'"),
    "a control character": (f"{GOOD}\0", "its character 5465 is '\\x00'"),
    "UTF-16": (GOOD.encode("utf-16-le").decode("latin-1"), "its character 2 is '\\x00'"),
    "a zero-width space": (f"{GOOD[:8]}\u200b{GOOD[8:]}", "its character 9 is '\\u200b'"),
    "percent-encoded": ("AAAA%40AAA", "a percent-encoded character is '@'"),
    "percent-encoded twice": (urllib.parse.quote("AA%2B"), "it is percent-encoded twice"),
    "a percent-encoded escape": ("AAAA%41%25", "it is percent-encoded twice"),
    "a percent sign": ("AAA%", "a % without two hexadecimal digits"),
    "percent signs": ("AAA%%41", "a % without two hexadecimal digits"),
    "half an escape": ("AAAA%2", "a % without two hexadecimal digits"),
    "a wrong escape": ("AAAA%2xAA", "a % without two hexadecimal digits"),
    "printed bytes": (repr(GOOD.encode()), "it begins with b and a quotation mark"),
    "two texts": (f"{base64.b64encode(b'a').decode()}AAAA", "it has padding (=) before its end"),
    "two texts percent-encoded": ("YQ%3D%3DAAAA", "it has padding (=) before its end"),
    "one character": ("A", "without white space and padding it has 1 characters, an impossible number; it may"),
    "cut off": (
        GOOD[:401],
        "without white space and padding it has 401 characters, an impossible number; it may",
    ),
    "decoded as a form": (urllib.parse.unquote_plus(GOOD), "spaces instead of plus signs; in a URL or a form, "),
    "hexadecimal in a data URL in a data URL": ("data:video/mp4;base64,data:,A", "its character 5 is ':'"),
}


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("name", BAD_BASE64)
def test_bad_base64_is_refused(name, kind):
    text, reason = BAD_BASE64[name]
    with pytest.raises(MediaError) as error:
        decode_base64(kind, text)
    sentence = str(error.value)
    assert sentence.startswith(f"The {kind} is not valid base64: ")
    assert reason in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 150


def test_a_data_url_in_the_data_that_is_not_base64():
    with pytest.raises(MediaError, match=r"^The data URL must have ;base64"):
        decode_base64("video", "data:video/mp4,AAAA")


def test_any_single_damage_is_refused_or_shows_in_the_data():
    rng = random.Random(1)
    text = in_lines(DATA[0], 76, "\n")
    for _ in range(500):
        place, character = rng.randrange(len(text)), rng.choice("@%!\x7f,é=:")
        with pytest.raises(MediaError):
            decode_base64("video", f"{text[:place]}{character}{text[place + 1 :]}A")


LARGE = {
    "clean": base64.b64encode,
    "in lines": base64.encodebytes,
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "percent-encoded": lambda data: urllib.parse.quote(base64.b64encode(data)).encode(),
}


@pytest.mark.parametrize("name", LARGE)
def test_memory(name):
    text = LARGE[name](random.Random(2).randbytes(3 * MIB)).decode()
    tracemalloc.start()
    try:
        decode_base64("video", text)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 2.25 * len(text)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        split_data_url(f"data:video/mp4;base64,{text}")
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 2.1 * len(text)  # The URL and its data.
    finally:
        tracemalloc.stop()
