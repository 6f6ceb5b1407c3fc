"""The last clips that were decoded, so that a chat about one of them decodes it once."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any

import numpy as np
from cachetools import LRUCache

from vllm_videollava.envs import read_settings


class DecodedClips:
    """Pixels of clips by key, as many as `max_bytes` have room for; those asked for longest ago go first."""

    def __init__(self, max_bytes: int) -> None:
        self._results: LRUCache[Any, np.ndarray] = LRUCache(max_bytes, getsizeof=lambda frames: frames.nbytes)
        self._pending: dict[Any, Future[np.ndarray]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what `decode` returns, or has returned, or is about to return in another thread."""
        with self._lock:
            if key in self._results:
                return self._results[key]
            if pending := self._pending.get(key):
                mine = None
            else:
                mine = self._pending[key] = Future()
        if mine is None:
            return pending.result()
        try:
            frames = decode()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(frames)
            with self._lock:
                if frames.nbytes <= self._results.maxsize:
                    self._results[key] = frames
            return frames
        finally:
            with self._lock:
                del self._pending[key]


@cache
def decoded_clips() -> DecodedClips:
    """Return this process's clips."""
    return DecodedClips(read_settings().decoded_cache_mb << 20)
