"""A clip is decoded once while it is kept, however many ask for it at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vllm_videollava.decoded_clips import DecodedClips
from vllm_videollava.errors import MediaError


def test_the_same_clip_is_decoded_once():
    decoded = []
    started, go_on = threading.Event(), threading.Event()

    def decode() -> np.ndarray:
        decoded.append(True)
        started.set()
        go_on.wait(10)
        return np.zeros(100, np.uint8)

    clips = DecodedClips(250)
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(clips.get, "a", decode)]
        started.wait(10)
        waiting += [threads.submit(clips.get, "a", decode) for _ in range(3)]
        go_on.set()
        assert len({id(future.result()) for future in waiting}) == 1
    assert len(decoded) == 1
    # Two have room; the one asked for longest ago goes.
    for key in ("b", "a", "c", "a"):
        clips.get(key, decode)
    assert len(decoded) == 3
    clips.get("b", decode)
    assert len(decoded) == 4


def test_what_fails_is_tried_again():
    clips = DecodedClips(250)
    with pytest.raises(MediaError):
        clips.get("a", lambda: (_ for _ in ()).throw(MediaError("no")))
    assert clips.get("a", lambda: np.zeros(3)).shape == (3,)
