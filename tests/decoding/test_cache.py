"""A clip is decoded once while it is kept, however many ask for it at once, and not at all if nobody waits for it."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import Future

import numpy as np
import pytest

from helpers.processes import wait_until
from vllm_videollava.decoding.cache import DecodedVideos
from vllm_videollava.decoding.errors import MediaError


class Decoder:
    """Takes decoding jobs, and does them when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Future[np.ndarray]] = []

    def submit(self) -> Future[np.ndarray]:
        self.jobs.append(Future())
        return self.jobs[-1]

    def submit_and_do(self) -> Future[np.ndarray]:
        future = self.submit()
        future.set_result(np.zeros(100, np.uint8))
        return future


async def begin(clips: DecodedVideos, decoder: Decoder, key: str, count: int) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(clips.get_async(key, decoder.submit)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def test_the_same_clip_is_decoded_once():
    clips, decoder = DecodedVideos(250), Decoder()

    async def ask():
        tasks = await begin(clips, decoder, "a", 4)
        decoder.jobs[0].set_result(np.zeros(100, np.uint8))
        return await asyncio.gather(*tasks)

    assert len({id(frames) for frames in asyncio.run(ask())}) == 1
    assert len(decoder.jobs) == 1
    # Two have room; the one asked for longest ago goes.
    for key in ("b", "a", "c", "a"):
        clips.get(key, decoder.submit_and_do)
    assert len(decoder.jobs) == 3
    clips.get("b", decoder.submit_and_do)
    assert len(decoder.jobs) == 4


def test_what_fails_is_tried_again():
    clips, failed = DecodedVideos(250), Future()
    failed.set_exception(MediaError("no"))
    with pytest.raises(MediaError):
        clips.get("a", lambda: failed)
    assert clips.get("a", Decoder().submit_and_do).shape == (100,)


def test_one_who_hangs_up_does_not_take_it_from_others():
    clips, decoder = DecodedVideos(250), Decoder()

    async def ask():
        first, second = await begin(clips, decoder, "a", 2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not decoder.jobs[0].cancelled()
        decoder.jobs[0].set_result(np.zeros(100, np.uint8))
        return await second

    assert asyncio.run(ask()).shape == (100,)


def test_when_all_hang_up_it_is_dropped_and_may_be_asked_for_again():
    clips, decoder = DecodedVideos(250), Decoder()

    async def ask():
        tasks = await begin(clips, decoder, "a", 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert decoder.jobs[0].cancelled()
        (again,) = await begin(clips, decoder, "a", 1)
        decoder.jobs[1].set_result(np.zeros(100, np.uint8))
        return await again

    assert asyncio.run(ask()).shape == (100,)


def test_what_is_under_way_when_all_hang_up_is_kept():
    clips, decoder = DecodedVideos(250), Decoder()

    async def ask():
        (task,) = await begin(clips, decoder, "a", 1)
        decoder.jobs[0].set_running_or_notify_cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        decoder.jobs[0].set_result(np.zeros(100, np.uint8))
        return await clips.get_async("a", decoder.submit)

    assert asyncio.run(ask()).shape == (100,)
    assert len(decoder.jobs) == 1


def test_what_has_no_room_is_freed_when_the_caller_is_done_with_it():
    """Not when Python looks for circles of garbage: the next clip uses its memory."""
    decoder = Decoder()

    def submit_and_do_later() -> Future[np.ndarray]:
        threading.Timer(0.1, lambda: decoder.jobs.pop().set_result(np.zeros(100, np.uint8))).start()
        return decoder.submit()

    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(DecodedVideos(0).get("a", submit_and_do_later))
        wait_until(lambda: alive() is None)
    finally:
        gc.enable()
