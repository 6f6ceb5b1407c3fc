"""Clips of parts that are encoded with settings of their own: their frames are those of decoding all, bit for bit."""

import functools
import io

import av
import numpy as np
import pytest

from helpers.clips import decode_all, join_clips, moving_frames
from vllm_videollava.decoding import video
from vllm_videollava.decoding.settings import Settings
from vllm_videollava.decoding.video import decode_frames

X264 = {
    "CAVLC": ({"crf": "12", "g": "6", "coder": "vlc"}, {"crf": "30", "g": "6", "coder": "vlc"}),
    "CABAC": ({"crf": "12", "g": "6", "coder": "ac"}, {"crf": "30", "g": "6", "coder": "ac"}),
}
X265 = tuple({"x265-params": f"log-level=none:keyint=6:{own}"} for own in ("crf=12:sign-hide=1", "crf=30:sign-hide=0"))
OTHERS = {
    "H.264": ("libx264", X264["CAVLC"]),
    "H.264's profile": ("libx264", ({"g": "6", "profile": "baseline"}, {"g": "6", "profile": "high"})),
    "HEVC": ("libx265", X265),
    "MPEG-4": ("mpeg4", ({"g": "6", "mpeg_quant": "1", "bf": "2"}, {"g": "6", "flags": "+qpel"})),
    "VP9": ("libvpx-vp9", ({"g": "6", "cpu-used": "8"}, {"g": "6", "cpu-used": "8", "lossless": "1"})),
    "AV1": ("libsvtav1", ({"g": "6", "preset": "10"}, {"g": "6", "preset": "12", "svtav1-params": "film-grain=8"})),
}
SOURCES = {"a": moving_frames(24, 64, 96, seed=1), "b": moving_frames(24, 64, 96, seed=2)}
CONTAINERS = ["flv", "mp4, descriptions", "mp4", "matroska", "mpegts"]


def join(order: str, options: tuple[dict, dict], container: str, **kwargs) -> bytes:
    own = dict(zip("ab", options, strict=True))
    return join_clips([SOURCES[part] for part in order], [own[part] for part in order], container, **kwargs)


@functools.cache
def join_once(order: str, settings: str, container: str) -> bytes:
    return join(order, X264[settings], container)


def decode(data: bytes, num_frames: int, threads: int = 1) -> np.ndarray:
    return decode_frames(io.BytesIO(data), num_frames, lambda frame: frame, Settings(), threads)


def assert_right(data: bytes, num_frames: int, threads: int) -> None:
    every = decode_all(data)
    expected = every[np.linspace(0, len(every) - 1, num_frames, dtype=int)]
    assert np.array_equal(decode(data, num_frames, threads), expected)


@pytest.fixture
def decoded_whole(monkeypatch) -> list:
    """What was decoded from beginning to end."""
    calls = []
    decode_whole = video._decode_whole
    monkeypatch.setattr(
        "vllm_videollava.decoding.video._decode_whole", lambda *args: calls.append(1) or decode_whole(*args)
    )
    return calls


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("num_frames", [3, 8])
@pytest.mark.parametrize("order", ["ab", "aba", "abab"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("settings", X264)
def test_settings_that_change(settings, container, order, num_frames, threads):
    assert_right(join_once(order, settings, container), num_frames, threads)


@pytest.mark.parametrize("num_frames", [3, 8])
@pytest.mark.parametrize("order", ["ab", "aba", "abab"])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("settings", OTHERS)
def test_settings_that_each_key_frame_brings(settings, container, order, num_frames):
    codec, options = OTHERS[settings]
    if container != "mpegts" or codec in ("libx264", "libx265", "mpeg4"):
        assert_right(join(order, options, container, every_key=True, codec=codec), num_frames, 1)


@pytest.mark.parametrize("num_frames", [3, 8])
@pytest.mark.parametrize("order", ["ab", "aba", "abab"])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("settings", ["H.264's profile", "HEVC", "MPEG-4"])
def test_other_settings_that_change(settings, container, order, num_frames):
    codec, options = OTHERS[settings]
    assert_right(join(order, options, container, codec=codec), num_frames, 1)


@pytest.mark.parametrize("container", CONTAINERS)
def test_settings_that_do_not_change_need_not_be_decoded_for(container, decoded_whole):
    """Parts that say the same again are decoded as one clip."""
    for every_key in (False, True):
        data = join("aba", (X264["CAVLC"][0],) * 2, container, every_key=every_key)
        assert_right(data, 8, 1)
    assert not decoded_whole


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 192)])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_size_that_changes(container, size):
    parts = [moving_frames(24, 64, 96, seed=1), moving_frames(24, *size, seed=2)]
    data = join_clips(parts, [{"g": "6"}] * 2, container)
    whole = []
    with av.open(io.BytesIO(data)) as clip:
        clip.streams.video[0].thread_type = "NONE"
        whole += [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    seen: list[np.ndarray] = []
    decode_frames(io.BytesIO(data), 8, lambda frame: seen.append(frame) or np.zeros(1), Settings())
    expected = [whole[index] for index in np.linspace(0, len(whole) - 1, 8, dtype=int)]
    # The last ones, for a clip may be decoded twice.
    assert all(np.array_equal(*pair) for pair in zip(seen[-8:], expected, strict=True))
