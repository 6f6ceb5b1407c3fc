"""From a client's URL to frames: decoded once, bounded in bytes, and refused with the part's place and no path."""

import asyncio
import base64
import functools
import http.server
import io
import re
import threading

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.media import MediaConnector

from helpers.clips import encode_clip, moving_frames
from helpers.http_client import data_url
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.decoding.settings import read_settings
from vllm_videollava.media.connector import (
    VideoLlavaMediaConnector,
    add_engine,
    make_connector,
    media_become,
    remove_engine,
)

FORMAT = PixelFormat(num_frames=8, image_size=48, video_size=48, original=True)
CLIP = encode_clip(moving_frames(12, 48, 64))


@pytest.fixture
def connector(tmp_path) -> VideoLlavaMediaConnector:
    return VideoLlavaMediaConnector(FORMAT, allowed_local_media_path=str(tmp_path))


def image_file(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(moving_frames(1, 40, 50)[0]).save(buffer, "PNG", **options)
    return buffer.getvalue()


GOOD = {"video": CLIP, "image": image_file()}


def fetch(connector, kind: str, url: str):
    """Fetch in both of vLLM's ways, and check that they agree."""
    results = []
    for way in (
        lambda: getattr(connector, f"fetch_{kind}")(url),
        lambda: asyncio.run(getattr(connector, f"fetch_{kind}_async")(url)),
    ):
        try:
            results.append(np.asarray(way().media))
        except MediaError as error:
            results.append(error)
    first, second = results
    if isinstance(first, MediaError):
        assert (str(first), first.url) == (str(second), url)
        raise first
    assert np.array_equal(first, second)
    return first


@pytest.mark.parametrize("kind", GOOD)
def test_limit_of_bytes(connector, kind, tmp_path, monkeypatch):
    path = tmp_path / "medium"
    path.write_bytes(GOOD[kind] + bytes(1 << 20))
    num_bytes = len(GOOD[kind]) + (1 << 20)
    urls = [path.as_uri(), data_url(path.read_bytes(), f"{kind}/any")]
    for url in urls:
        assert fetch(connector, kind, url).size
    monkeypatch.setenv("VIDEO_LLAVA_MAX_MEDIA_MB", "1")
    read_settings.cache_clear()
    sentence = f"The {kind} has {num_bytes} bytes; the limit is 1048576 bytes (VIDEO_LLAVA_MAX_MEDIA_MB)."
    for url in urls:
        with pytest.raises(MediaError, match=f"^{re.escape(sentence)}$"):
            fetch(connector, kind, url)


def test_the_limit_is_that_of_the_bytes_however_they_are_written(connector, monkeypatch):
    """A file just within the limit, in base64 with line breaks, and percent-encoded."""
    monkeypatch.setenv("VIDEO_LLAVA_MAX_MEDIA_MB", "1")
    data = GOOD["image"] + bytes((1 << 20) - len(GOOD["image"]))
    lines = base64.encodebytes(data).decode()
    quoted = "".join(f"%{ord(character):02X}" for character in base64.b64encode(data).decode())
    expected = fetch(connector, "image", data_url(GOOD["image"], "image/png"))
    for text in (lines, quoted):
        assert np.array_equal(fetch(connector, "image", f"data:image/png;base64,{text}"), expected)
    sentence = r"^The base64 of the image has 5242881 characters, too many; the limit is 1048576 bytes "
    with pytest.raises(MediaError, match=sentence):
        fetch(connector, "image", f"data:image/png;base64,{'A' * ((5 << 20) + 1)}")


@pytest.mark.parametrize("kind", GOOD)
def test_an_address_with_white_space_around_it(connector, kind, tmp_path):
    (tmp_path / "medium").write_bytes(GOOD[kind])
    url = (tmp_path / "medium").as_uri()
    assert np.array_equal(fetch(connector, kind, f"\n {url} \n"), fetch(connector, kind, url))


def test_limits_of_bytes_that_are_fetched(connector, tmp_path, monkeypatch):
    (tmp_path / "clip").write_bytes(CLIP + bytes(1 << 20))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/clip"
        assert connector.fetch_video(url).media.size
        for limit in ("VIDEO_LLAVA_MAX_MEDIA_MB", "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB"):
            monkeypatch.setenv(limit, "1")
            read_settings.cache_clear()
            with pytest.raises(MediaError, match=rf"^The video .*{limit}"):
                connector.fetch_video(url)
        server.shutdown()


def test_an_image_with_too_many_pixels(connector, monkeypatch):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1999")
    with pytest.raises(
        MediaError, match=r"^The image has 50x40 = 2000 pixels; the limit is 1999 \(VLLM_MAX_IMAGE_PIXELS\)\.$"
    ):
        fetch(connector, "image", data_url(GOOD["image"], "image/png"))


BAD_URLS = {
    "no base64": ("data:{kind}/any;base64,@@@@", "The {kind} is not valid base64: its character 1 is '@'."),
    "not base64": ("data:{kind}/any,abc", "The data URL must have ;base64 right before its comma"),
    "nothing": ("data:{kind}/any;base64,", "The {kind} is empty."),
    "no comma": ("data:{kind}", "The data URL has no comma near its beginning"),
    "other scheme": (
        "ftp://example.org/a",
        "The {kind} cannot be fetched: its address must begin with http://, https://, data: or file://.",
    ),
    "odd host": (
        "http://[::1",
        "The {kind} cannot be fetched: its address, or one that its server redirects to, is malformed.",
    ),
    "no such file": ("file://{folder}/none", "The {kind} file cannot be read, or"),
    "folder": ("file://{folder}", "The {kind} file cannot be read, or"),
    "outside": ("file:///etc/passwd", "The {kind} file cannot be read, or"),
    "device": ("file:///dev/zero", "The {kind} file cannot be read, or"),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("bad", BAD_URLS)
def test_bad_urls(connector, kind, bad, tmp_path):
    url, message = (text.format(kind=kind, folder=tmp_path) for text in BAD_URLS[bad])
    with pytest.raises(MediaError) as error:
        fetch(connector, kind, url)
    assert str(error.value).startswith(message)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("url", [5, None, {"url": "data:,"}, ["data:,"], True])
def test_what_is_no_address(connector, kind, url):
    """vLLM's endpoint /inference/v1/generate passes on whatever a client puts there."""
    sentence = "has no address" if url is None else "'s address must be a string"
    with pytest.raises(MediaError, match=rf"^The {kind} ?{sentence}\.$"):
        fetch(connector, kind, url)


def test_a_sequence_of_pictures_of_any_mode_is_a_clip(connector):
    pictures = []
    for index, frame in enumerate(moving_frames(20, 48, 48)):
        buffer = io.BytesIO()
        Image.fromarray(frame).convert("L" if index % 2 else "RGB").save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(picture).decode() for picture in pictures)
    sampled = [pictures[index] for index in np.linspace(0, 19, 8, dtype=int)]
    expected = [np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in sampled]
    assert np.array_equal(fetch(connector, "video", url), expected)


def test_other_models_in_the_same_process_are_left_to_vllm():
    with media_become(FORMAT):
        assert type(make_connector(None, allowed_local_media_path="/")) is VideoLlavaMediaConnector
    for kwargs in (None, {}, {"image": {"image_mode": None}}):
        assert type(make_connector(kwargs, allowed_local_media_path="/")) is MediaConnector


def test_vllms_endpoints_that_ask_no_renderer_get_this_connector():
    """They make a connector from the engine's own settings, which no request can hand over."""
    settings = {}
    add_engine(settings, FORMAT)
    try:
        assert type(make_connector(settings)) is VideoLlavaMediaConnector
        assert type(make_connector({})) is MediaConnector
    finally:
        remove_engine(settings)
    assert type(make_connector(settings)) is MediaConnector


def test_connectors_of_requests_at_the_same_time_keep_apart():
    """Two models in one process, each with requests under way."""
    formats = [FORMAT, PixelFormat(num_frames=8, image_size=24, video_size=24, original=False)]

    async def fetch_for(pixel_format: PixelFormat) -> tuple[int, ...]:
        with media_become(pixel_format):
            await asyncio.sleep(0)
            # As vLLM does: several tasks, each of which makes its connector.
            urls = [data_url(GOOD["image"], "image/png"), data_url(GOOD["image"] + b"\0", "image/png")]
            media = await asyncio.gather(*(fetch_one(url) for url in urls))
            return {medium.media.shape for medium in media}

    async def fetch_one(url: str):
        return await make_connector().fetch_image_async(url)

    async def fetch_all():
        return await asyncio.gather(*map(fetch_for, formats))

    assert asyncio.run(fetch_all()) == [{pixel_format.image_shape} for pixel_format in formats]


def test_a_request_does_not_reach_the_models_settings():
    """They were once a part of media_io_kwargs."""
    theirs = {"video_llava": {"image_size": 56, "video_size": 56, "num_frames": 2, "original": False}}
    with media_become(FORMAT):
        connector = make_connector(theirs)
    expected = VideoLlavaMediaConnector(FORMAT).fetch_image(data_url(GOOD["image"], "image/png")).media
    assert np.array_equal(connector.fetch_image(data_url(GOOD["image"], "image/png")).media, expected)
