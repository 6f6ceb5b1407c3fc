"""From a client's URL to frames: decoded once, bounded in bytes, and refused with the part's place and no path."""

import asyncio
import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
from clips import encode_clip, moving_frames
from http_client import data_url
from PIL import Image
from vllm.multimodal.media import MediaConnector

from vllm_videollava.errors import MediaError
from vllm_videollava.media_connector import NAME, VideoLlavaMediaConnector, make_connector

OPTIONS = {NAME: {"num_frames": 8, "image_size": 48, "video_size": 48, "original": True}}
CLIP = encode_clip(moving_frames(12, 48, 64))


@pytest.fixture
def connector(tmp_path) -> VideoLlavaMediaConnector:
    return VideoLlavaMediaConnector(OPTIONS, allowed_local_media_path=str(tmp_path))


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
    for url in urls:
        # Of base64 only the length is looked at, which is that of up to two bytes more.
        with pytest.raises(
            MediaError, match=rf"^The {kind} has {str(num_bytes)[:-1]}\d bytes; VIDEO_LLAVA_MAX_MEDIA_MB"
        ):
            fetch(connector, kind, url)


def test_limits_of_bytes_that_are_fetched(connector, tmp_path, monkeypatch):
    (tmp_path / "clip").write_bytes(CLIP + bytes(1 << 20))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/clip"
        assert connector.fetch_video(url).media.size
        for limit in ("VIDEO_LLAVA_MAX_MEDIA_MB", "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB"):
            monkeypatch.setenv(limit, "1")
            with pytest.raises(MediaError, match=rf"^The video .*{limit}"):
                connector.fetch_video(url)
        server.shutdown()


def test_an_image_with_too_many_pixels(connector, monkeypatch):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1999")
    with pytest.raises(MediaError, match=r"^The image has 50x40 = 2000 pixels; VLLM_MAX_IMAGE_PIXELS is 1999\.$"):
        fetch(connector, "image", data_url(GOOD["image"], "image/png"))


BAD_URLS = {
    "no base64": ("data:{kind}/any;base64,@@@@", "The {kind} is not valid base64: its character 1 is '@'."),
    "not base64": ("data:{kind}/any,abc", "The data URL does not say ;base64 before its data"),
    "nothing": ("data:{kind}/any;base64,", "The {kind} is empty."),
    "no comma": ("data:{kind}", "The data URL has no comma near its beginning"),
    "other scheme": ("ftp://example.org/a", "The {kind} cannot be fetched: its address must begin with"),
    "odd host": ("http://[::1", "The {kind} cannot be fetched: its address, or one that"),
    "no such file": ("file://{folder}/none", "The file of the {kind} cannot be read, or"),
    "folder": ("file://{folder}", "The file of the {kind} cannot be read, or"),
    "outside": ("file:///etc/passwd", "The file of the {kind} cannot be read, or"),
    "device": ("file:///dev/zero", "The file of the {kind} cannot be read, or"),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("bad", BAD_URLS)
def test_bad_urls(connector, kind, bad, tmp_path):
    url, message = (text.format(kind=kind, folder=tmp_path) for text in BAD_URLS[bad])
    with pytest.raises(MediaError) as error:
        fetch(connector, kind, url)
    assert str(error.value).startswith(message)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("asked", [{"num_frames": 16}, {"fps": 2}, {"num_frames": None}, {"fps": 1, "num_frames": 8}])
def test_another_number_of_frames_is_refused(asked):
    connector = VideoLlavaMediaConnector({**OPTIONS, "video": asked})
    with pytest.raises(MediaError, match="but this model takes 8 frames"):
        fetch(connector, "video", data_url(CLIP, "video/mp4"))


@pytest.mark.parametrize("asked", [{"num_frames": 8}, {"num_frames": -1}, {"other": 3}])
def test_the_models_own_number_of_frames_may_be_named(asked):
    connector = VideoLlavaMediaConnector({**OPTIONS, "video": asked})
    assert fetch(connector, "video", data_url(CLIP, "video/mp4")).shape == (8, 48, 48, 3)


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
    assert type(make_connector(OPTIONS)) is VideoLlavaMediaConnector
    for kwargs in (None, {}, {"image": {"image_mode": None}}):
        assert type(make_connector(kwargs, allowed_local_media_path="/")) is MediaConnector
