"""A cache of decoded videos, so that a chat about one video decodes it once."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from cachetools import LRUCache

from vllm_videollava.decoding.metrics import count_video
from vllm_videollava.decoding.settings import read_settings

Submit = Callable[[], Future[np.ndarray]]
"""Queues a job and returns its future; cancelling the future before the job runs drops the job."""


@dataclass(eq=False)
class _Pending:
    future: Future[np.ndarray]
    num_waiting: int = 0


class DecodedVideos:
    """Decoded videos by key, up to `max_bytes`; the least recently used goes first.

    If a video is already being decoded for another request, a new request waits
    for the same result. When no request waits any more, the job is dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self._results: LRUCache[Any, np.ndarray] = LRUCache(max_bytes, getsizeof=lambda frames: frames.nbytes)
        self._pending: dict[Any, _Pending] = {}
        self._lock = threading.RLock()

    def get(self, key: Any, submit: Submit) -> np.ndarray:
        """Return a video's pixels: from the cache, from a job that others already wait for, or by `submit`."""
        if isinstance(found := self._find(key, submit), np.ndarray):
            return found
        try:
            return found.future.result()
        finally:
            self._leave(found)

    async def get_async(self, key: Any, submit: Submit) -> np.ndarray:
        """Do the same as `get` without blocking a thread."""
        if isinstance(found := self._find(key, submit), np.ndarray):
            return found
        try:
            # A client that disconnects does not cancel a job that others wait for.
            return await asyncio.shield(asyncio.wrap_future(found.future))
        finally:
            self._leave(found)

    def _find(self, key: Any, submit: Submit) -> "np.ndarray | _Pending":
        with self._lock:
            if key in self._results:
                count_video("cache")
                return self._results[key]
            pending = self._pending.get(key)
            count_video("decoder" if pending is None else "shared decoder")
            if pending is None:
                pending = self._pending[key] = _Pending(submit())
                pending.future.add_done_callback(partial(self._keep, key))
            pending.num_waiting += 1
            return pending

    def _keep(self, key: Any, future: Future[np.ndarray]) -> None:
        with self._lock:
            if (pending := self._pending.get(key)) and pending.future is future:
                del self._pending[key]
            if future.cancelled() or future.exception():
                return
            frames = future.result()
            if frames.nbytes <= self._results.maxsize:
                self._results[key] = frames

    def _leave(self, pending: _Pending) -> None:
        with self._lock:
            pending.num_waiting -= 1
            if not pending.num_waiting:
                pending.future.cancel()


@cache
def decoded_videos() -> DecodedVideos:
    """Return this process's decoded videos."""
    return DecodedVideos(read_settings().decoded_cache_mb << 20)
