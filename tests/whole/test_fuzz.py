"""Damaged files of every kind against a running server: each gets an answer or a sentence, and no harm is done.

`make fuzz` asks about many more of them.
"""

import random
import re
import time
from collections import Counter

import pytest

from helpers.clips import encode_clip, moving_frames
from helpers.damage import damage, good_images, good_videos
from helpers.http_client import chat, data_url, part, text
from helpers.processes import count_resources, wait_until

SECONDS_TO_ANSWER = 40
MAX_SENTENCE = 300


@pytest.fixture
def resources(server):
    """A function that counts what the server and its processes hold."""

    return lambda: count_resources(server.process.pid)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_damaged_files(server, resources, kind, request):
    rng = random.Random(2024)
    all_good = {"video": good_videos(), "image": good_images()}
    # The first of either kind open what is then kept.
    for either, files in all_good.items():
        for data in files:
            ask(server.url, either, data)
    good = all_good[kind]
    before = resources()
    statuses = Counter()
    for number in range(request.config.getoption(f"--fuzz-{kind}s")):
        data = damage(good[number % len(good)], rng)
        status, reply = ask(server.url, kind, data)
        statuses[status] += 1
        assert status in (200, 400), (number, reply)
        if status == 400:
            sentence = reply["error"]["message"]
            assert sentence.startswith(f"Message 1, part 2: The {kind} "), sentence
            assert len(sentence) < MAX_SENTENCE
            assert not re.search(r"(?<!\w)/\w", sentence), f"names a path: {sentence}"
        # A clip of its own each time, because decoded ones are kept.
        status, reply = ask(server.url, "video", good_clip(number))
        assert status == 200, (number, reply)
    assert statuses[200]
    assert statuses[400]
    print(f"{kind}s: {dict(statuses)}; before {before}, after {resources()}")
    wait_until(lambda: all(now <= before[what] for what, now in resources().items() if what != "memory in MiB"))


def ask(url: str, kind: str, data: bytes) -> tuple[int, dict]:
    start = time.monotonic()
    medium = part(kind, data_url(data, f"{kind}/any"))
    result = chat(url, text("What?"), medium, max_tokens=1)
    assert time.monotonic() - start < SECONDS_TO_ANSWER
    return result


def good_clip(number: int) -> bytes:
    # A box of type "free", which players pass over.
    return GOOD_CLIP + b"\x00\x00\x00\x10free" + number.to_bytes(8, "big")


GOOD_CLIP = encode_clip(moving_frames(9, 48, 64))
