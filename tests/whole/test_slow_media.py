"""Slow clips hold up neither each other's callers nor anybody else: cached clips, images and small files pass by."""

import http.client
import io
import json
import os
import signal
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import av
import pytest
from PIL import Image

from helpers.clips import encode_clip, smooth_frames
from helpers.http_client import chat, image_part, part, text, video_part
from helpers.processes import process_tree, running_server, wait_until

NUM_SLOW = 12
SECONDS = 2
"""Within which others are answered."""


@pytest.fixture(scope="module")
def slow_clips(tmp_path_factory) -> list[Path]:
    """Clips of which all is decoded, which takes some seconds each, and no two of which are the same."""
    folder = tmp_path_factory.mktemp("slow")
    data = stand_still(600)
    assert len(data) > 1 << 20
    paths = [folder / f"{number}.avi" for number in range(NUM_SLOW)]
    for path in paths:
        path.write_bytes(data + path.name.encode())
    return paths


def stand_still(count: int) -> bytes:
    """Encode a large picture, and repeat what says that it stays; in AVI, no part of a clip is enough."""
    source = av.open(io.BytesIO(encode_clip(smooth_frames(1, 2160, 3840).repeat(2, axis=0), "mpeg4", "avi")))
    buffer = io.BytesIO()
    with source, av.open(buffer, "w", format="avi") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        picture, stays = (bytes(packet) for packet in source.demux(video=0) if packet.size)
        for index in range(count):
            packet = av.Packet(stays if index else picture)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, index, index, not index
            output.mux(packet)
    return buffer.getvalue()


@contextmanager
def asked(url: str, paths: list[Path]) -> Iterator[None]:
    """Ask about clips, and hang up at the end."""
    with ExitStack() as stack:
        for path in paths:
            connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)
            stack.callback(connection.close)
            messages = [{"role": "user", "content": [part("video", path.as_uri()), text("What?")]}]
            body = json.dumps({"messages": messages, "max_tokens": 1})
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        # They are under way when every one has been read.
        time.sleep(2)
        yield


def seconds_to_answer(url: str, *parts) -> float:
    start = time.monotonic()
    status, reply = chat(url, *parts, text("What?"), max_tokens=1)
    assert status == 200, reply
    return time.monotonic() - start


def test_others_pass_slow_clips_by(server_url, slow_clips):
    cached = video_part(encode_clip(smooth_frames(20, 64, 96, seed=1)))
    seconds_to_answer(server_url, cached)
    others = {
        "cached clip": cached,
        "new image": image_part(Image.fromarray(smooth_frames(1, 64, 96, seed=2)[0])),
        "new small clip": video_part(encode_clip(smooth_frames(20, 64, 96, seed=3))),
        "text": text("Hi."),
    }
    with asked(server_url, slow_clips):
        seconds = {name: seconds_to_answer(server_url, other) for name, other in others.items()}
    print(seconds)
    assert max(seconds.values()) < SECONDS, seconds


def test_what_clients_that_hung_up_asked_is_not_decoded(server_url, slow_clips):
    """All of it would take a minute."""
    with asked(server_url, slow_clips):
        pass
    large = video_part(encode_clip(smooth_frames(20, 64, 96, seed=4)) + bytes(1 << 20))
    assert seconds_to_answer(server_url, large) < 20


def test_clips_that_can_never_fit_are_refused_at_once(server_url, slow_clips):
    start = time.monotonic()
    status, reply = chat(server_url, *[part("video", slow_clips[0].as_uri())] * 40, text("What?"))
    assert time.monotonic() - start < 1
    assert status == 400
    # A video is 8 frames of 17 tokens at this checkpoint's 56 pixels.
    assert (
        reply["error"]["message"] == "40 videos take 5440 tokens; the limit is 4096 (max_model_len), answer included."
    )


def test_a_server_ends_soon_whatever_it_was_asked(checkpoint, slow_clips, tmp_path):
    with running_server(checkpoint, tmp_path / "log.txt") as server, asked(server.url, slow_clips):
        below = process_tree(server.process.pid)
        start = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(60)
        seconds = time.monotonic() - start
    print(seconds)
    assert seconds < 10
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
