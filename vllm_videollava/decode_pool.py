"""Decoding in other processes, so that no file can take this one down."""

import atexit
import functools
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from vllm_videollava.decode_worker import ANSWERED, MESSAGE_BYTES, OUT_OF_MEMORY, REFUSED
from vllm_videollava.envs import Settings, read_settings, variable
from vllm_videollava.errors import MediaError

MAX_THREADS = 8
"""Of one decoder; more of them help little, and each takes memory."""
CRASHED, TIMED_OUT = -1, -2
"""What becomes of a request, beside a worker's own answers."""
SECONDS_OF_GRACE = 5
"""After which a worker is ended that the kernel has not ended, for instance because it is stopped."""


class DecodePool:
    """Processes that decode, one medium at a time each; they are started when needed, and replaced when they end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._num_cores = len(os.sched_getaffinity(0))
        self._num_workers = settings.decode_workers or self._num_cores
        self._workers: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self._num_workers):
            self._workers.put(None)

    def run(self, kind: str, function: str, data: bytes, **arguments: Any) -> np.ndarray:
        """Let `function` decode a medium in another process; wait for one if all are busy.

        Args:
            kind: "image" or "video", for messages.
            function: module:name, so that decoders are imported there only;
                called with `data` as an open file, and with `arguments`.

        Returns:
            What `function` returned, uint8.

        Raises:
            MediaError: the medium cannot be decoded, or not within the settings.
        """
        worker = self._workers.get()
        try:
            if worker is None or not worker.is_alive():
                worker = _Worker()
            return worker.run(kind, function, data, arguments, self._settings)
        finally:
            self._workers.put(worker)

    def threads(self) -> int:
        """Return how many threads a decoder may use now, so that one clip has all cores and many share them."""
        num_busy = self._num_workers - self._workers.qsize()
        return max(1, min(MAX_THREADS, self._num_cores // (num_busy + 1)))

    def close(self) -> None:
        while not self._workers.empty():
            if worker := self._workers.get():
                worker.kill()


class _Worker:
    """One process; its socket closes when this one ends, however it ends, and then it ends too."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "vllm_videollava.decode_worker"]
        # numpy would start a thread for each core.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            # In a session of its own, Ctrl-C does not reach it.
            self._process = subprocess.Popen(command, stdin=theirs, start_new_session=True, env=environment)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def run(self, kind: str, function: str, data: bytes, arguments: dict[str, Any], settings: Settings) -> np.ndarray:
        status, result, descriptors = CRASHED, None, []
        try:
            self._send(function, data, arguments, settings)
            self._socket.settimeout(settings.decode_seconds + SECONDS_OF_GRACE)
            message, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
            if message:
                status, result = json.loads(message)
        except TimeoutError:
            status = TIMED_OUT
        except ConnectionError:
            pass
        finally:
            # Also when Ctrl-C comes in between: what this worker is doing, nobody waits for.
            if status in (CRASHED, TIMED_OUT, OUT_OF_MEMORY):
                self.kill()
        if status == ANSWERED:
            return _read_array(descriptors[0], result)
        if status == REFUSED:
            raise MediaError(result)
        raise self._error(f"The {kind} ({len(data)} bytes)", status, result, settings)

    def _send(self, function: str, data: bytes, arguments: dict[str, Any], settings: Settings) -> None:
        request = pickle.dumps((function, arguments, settings.decode_seconds, settings.decode_memory_mb << 20))
        with open(os.memfd_create("medium"), "wb", buffering=0) as file:
            written = 0
            while written < len(data):
                written += file.write(memoryview(data)[written:])
            file.seek(0)
            socket.send_fds(self._socket, [request], [file.fileno()])

    def _error(self, medium: str, status: int, detail: str | None, settings: Settings) -> MediaError:
        exit_code = self._process.returncode
        if status == OUT_OF_MEMORY:
            limit = f"{variable('decode_memory_mb')} allows, {settings.decode_memory_mb} MiB"
            return MediaError(f"{medium} takes more memory to decode than {limit}.")
        if status == TIMED_OUT or exit_code == -signal.SIGALRM:
            limit = f"{variable('decode_seconds')} allows, {settings.decode_seconds} seconds"
            return MediaError(f"{medium} takes longer to decode than {limit}.")
        if status == CRASHED:
            return MediaError(f"{medium} cannot be decoded: its decoder crashed.", detail=f"exit code {exit_code}")
        return MediaError(f"{medium} cannot be decoded.", detail=detail)


def _read_array(descriptor: int, shape: list[int]) -> np.ndarray:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return np.fromfile(file, np.uint8).reshape(shape)


_MAKING_POOL = threading.Lock()


def shared_pool() -> DecodePool:
    """Return this process's pool.

    Raises:
        ValueError: a setting in the environment is not valid.
    """
    with _MAKING_POOL:
        return _make_pool()


@functools.cache
def _make_pool() -> DecodePool:
    pool = DecodePool(read_settings())
    atexit.register(pool.close)
    return pool
