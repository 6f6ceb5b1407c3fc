"""Decodes in separate processes, so that no file can crash this one and no slow file holds up the others."""

import atexit
import json
import math
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from weakref import WeakSet

import numpy as np

from vllm_videollava.decoding import metrics
from vllm_videollava.decoding.cpu_count import cpu_count
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.file_kinds import HEAD_BYTES
from vllm_videollava.decoding.limits import takes_too_long, takes_too_much_memory
from vllm_videollava.decoding.settings import Settings, read_settings
from vllm_videollava.decoding.worker import MESSAGE_BYTES, Outcome, Request

MAX_THREADS = 8
"""The largest number of threads for one decoder; more would help little, and each takes memory."""
SMALL_BYTES = 1 << 20
"""A video with fewer bytes does not wait for larger ones."""
SECONDS_TO_START = 60
WAITING_FACTOR = 4
"""A decoder may take its time limit multiplied by this, because it may have to wait for a processor."""
SECONDS_OF_GRACE = 5
"""Grace before killing a worker that its own timer did not end, for example a stopped one."""
MAX_SENTENCE = 500
OTHER_FORMAT = {
    "image": "try another format, for example PNG",
    "video": "try another format, for example H.264 in MP4",
}
ENDING = "The engine is shutting down and decodes nothing more."
ENVIRONMENT = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH")
"""The variables that workers inherit, in addition to Python's own: no keys, no tokens."""


class DecoderUnavailableError(RuntimeError):
    """Decoding does not work here at present, for any medium."""


class Lane(IntEnum):
    """Queues of jobs, the slowest first; a faster lane may use the workers that slower ones leave free."""

    LARGE_VIDEO = 0
    SMALL_VIDEO = 1
    IMAGE = 2


@dataclass(frozen=True, eq=False)
class Job:
    """One medium to decode.

    Attributes:
        kind: "image" or "video".
        function: module:name, so that only workers import decoders; called with `data` as an open file, with
            `arguments`, and with `threads` if the job is `threaded`.
        shape: shape of the uint8 array that `function` returns.
        future: resolves to that array or to an error.
        created: the time at which it began to wait, of the monotonic clock.
    """

    kind: str
    function: str
    data: bytes
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    threaded: bool = False
    future: Future[np.ndarray] = field(default_factory=Future)
    created: float = field(default_factory=time.monotonic)

    @property
    def lane(self) -> Lane:
        if self.kind == "image":
            return Lane.IMAGE
        return Lane.SMALL_VIDEO if len(self.data) < SMALL_BYTES else Lane.LARGE_VIDEO


class DecodePool:
    """Processes that each decode one medium at a time; they are started when needed and replaced when they end.

    There is one place for a large video per processor (or `decode_workers` of
    them). A quarter as many places are added for small videos, and as many
    again for images, so that these never wait for large videos. Large videos
    are not starved either: while some wait, one of them is always being decoded.
    """

    def __init__(self, settings: Settings, num_sharers: int = 1) -> None:
        """Args:
        num_sharers: number of processes on this machine that have such a pool, this one included.
        """
        self.settings = settings
        self._num_cores = max(1, cpu_count() // num_sharers)
        num_workers = settings.decode_workers or self._num_cores
        express = math.ceil(num_workers / 4)
        self._most_running = [num_workers, num_workers + express, num_workers + 2 * express]
        self._lock = threading.Lock()
        self._queued: dict[Lane, deque[Job]] = {lane: deque() for lane in Lane}
        self._running: set[Job] = set()
        self._dropped: set[Job] = set()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._users: WeakSet[object] = WeakSet()
        self._starting = self._closed = False

    def submit(self, job: Job) -> Future[np.ndarray]:
        """Decode a medium as soon as a worker is free for it.

        Returns:
            The job's future; cancelling it drops a job that still waits.
        """
        with self._lock:
            self._queued[job.lane].append(job)
        job.future.add_done_callback(self._forget_cancelled)
        if (first := self._take()) is not None:
            try:
                threading.Thread(target=self._work, args=(first,), daemon=True, name="decode").start()
            except RuntimeError:
                first.future.set_exception(
                    DecoderUnavailableError("The server cannot start another thread to decode; try again later.")
                )
                self._release(first)
        return job.future

    def add_user(self, user: object) -> None:
        """Register a user; jobs are kept as long as any user is left."""
        with self._lock:
            self._users.add(user)

    def remove_user(self, user: object) -> None:
        """Unregister a user; if it was the last one, drop all waiting and running jobs."""
        with self._lock:
            self._users.discard(user)
            if self._users:
                return
        self._drop_all()

    def close(self) -> None:
        """Drop all jobs and end the workers for good."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._drop_all()
        for worker in idle:
            worker.close()

    def _drop_all(self) -> None:
        with self._lock:
            queued = [job for jobs in self._queued.values() for job in jobs]
            for jobs in self._queued.values():
                jobs.clear()
            self._dropped |= self._running
            for worker in self._busy:
                worker.kill()
        for job in queued:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(DecoderUnavailableError(ENDING))

    def _forget_cancelled(self, future: Future[np.ndarray]) -> None:
        if not future.cancelled():
            return
        with self._lock:
            for lane, jobs in self._queued.items():
                self._queued[lane] = deque(job for job in jobs if job.future is not future)

    def _take(self) -> Job | None:
        """Take the next job that may run: from a lane with no running job, or else from the fastest lane."""
        while True:
            with self._lock:
                lanes = [lane for lane in Lane if self._may_run(lane)]
                if not lanes:
                    return None
                running = {job.lane for job in self._running}
                lane = next((lane for lane in lanes if lane not in running), lanes[-1])
                job = self._queued[lane].popleft()
                self._running.add(job)
            if job.future.set_running_or_notify_cancel():
                return job
            self._release(job)

    def _may_run(self, lane: Lane) -> bool:
        # A job counts in its own lane and in all faster ones.
        most = zip(Lane, self._most_running, strict=True)
        return bool(self._queued[lane]) and all(
            sum(job.lane <= other for job in self._running) < limit for other, limit in most if other >= lane
        )

    def _release(self, job: Job) -> None:
        with self._lock:
            self._running.discard(job)
            self._dropped.discard(job)

    def _work(self, job: Job | None) -> None:
        """Do a job, and then others for as long as any may run."""
        while job is not None:
            self._do(job)
            self._release(job)
            job = self._take()

    def _do(self, job: Job) -> None:
        waited = time.monotonic() - job.created
        try:
            with metrics.decoding(job.lane.name.lower(), job.data[:HEAD_BYTES], waited):
                pixels = self._decode(job)
            job.future.set_result(pixels)
        except BaseException as error:
            refusal = DecoderUnavailableError(ENDING) if job in self._dropped else error
            # The traceback's frames would keep the job and its file alive, in a reference cycle with the future.
            job.future.set_exception(refusal.with_traceback(None))

    def _decode(self, job: Job) -> np.ndarray:
        worker = self._idle_worker() or _Worker()
        with self._lock:
            self._busy.add(worker)
            dropped, most_threads = job in self._dropped, min(MAX_THREADS, self._num_cores) if job.threaded else 1
            # A single video gets all cores; several share them.
            threads = max(1, min(most_threads, self._num_cores // len(self._running)))
        try:
            if dropped:
                raise DecoderUnavailableError(ENDING)
            self._start_spare()
            # The limit must not depend on how many other videos are being decoded.
            return worker.run(job, threads, self.settings.decode_seconds * most_threads, self.settings)
        finally:
            self._put_back(worker, next_turn=True)

    def _idle_worker(self) -> "_Worker | None":
        with self._lock:
            while self._idle:
                if (worker := self._idle.pop()).is_alive():
                    return worker
                worker.close()
        return None

    def _put_back(self, worker: "_Worker", *, next_turn: bool) -> None:
        """Keep a worker that is now idle for the next job, or as a spare; close it if it is not needed."""
        with self._lock:
            self._busy.discard(worker)
            # A worker is not needed if others became free while it was starting.
            has_room = len(self._idle) + len(self._busy) < self._most_running[-1]
            keeps = has_room and worker.is_alive() and not self._closed
            if keeps:
                self._idle.insert(len(self._idle) if next_turn else 0, worker)
        if not keeps:
            worker.close()

    def _start_spare(self) -> None:
        """Start a spare worker, so that the next job need not wait for one, unless there is one already."""
        with self._lock:
            if self._idle or self._starting or len(self._busy) >= self._most_running[-1]:
                return
            self._starting = True
        try:
            threading.Thread(target=self._add_spare, daemon=True, name="start decoder").start()
        except RuntimeError:
            self._starting = False

    def _add_spare(self) -> None:
        try:
            # If this fails, the next job that needs a worker reports it.
            with suppress(DecoderUnavailableError):
                self._put_back(_Worker(), next_turn=False)
        finally:
            self._starting = False


class _Worker:
    """One decoding process; it ends when its socket closes, which happens however this process ends.

    Raises:
        DecoderUnavailableError: the process does not start.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "vllm_videollava.decoding.worker"]
        with ExitStack() as unless_started:
            try:
                self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                unless_started.enter_context(self._socket)
                with theirs:
                    # A new session keeps Ctrl-C away from it.
                    self._process = subprocess.Popen(command, stdin=theirs, start_new_session=True, env=_environment())
            except OSError as error:
                raise DecoderUnavailableError(f"A decoding process cannot be started: {error.strerror}.") from error
            self._wait_until_ready()
            unless_started.pop_all()

    def _wait_until_ready(self) -> None:
        self._socket.settimeout(SECONDS_TO_START)
        if self._receive()[0] != Outcome.READY:
            if (exit_code := self._end()) is None:
                raise DecoderUnavailableError(f"A decoding process did not start within {SECONDS_TO_START} seconds.")
            raise DecoderUnavailableError(
                f"A decoding process ended while it started (exit code {exit_code}); the log has its messages."
            )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; another thread that waits for its answer gets none."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._socket.close()

    def run(self, job: Job, threads: int, seconds_of_work: float, settings: Settings) -> np.ndarray:
        """Decode a medium; end the worker unless it gives a proper answer.

        Args:
            seconds_of_work: processor time that the decoder may take.

        Raises:
            MediaError: the medium cannot be decoded, or not within the settings.
            DecoderUnavailableError: the system has ended the worker, or communication with it failed.
        """
        outcome, result, array, exit_code = Outcome.CRASHED, None, None, None
        seconds = settings.decode_seconds * WAITING_FACTOR
        try:
            arguments = {**job.arguments, "threads": threads} if job.threaded else job.arguments
            memory_bytes = settings.decode_memory_mb << 20
            self._send(Request(job.function, arguments, seconds_of_work, seconds, memory_bytes), job.data)
            self._socket.settimeout(seconds + SECONDS_OF_GRACE)
            outcome, result, descriptors = self._receive()
            try:
                if outcome == Outcome.ANSWERED:
                    array = _read_array(descriptors, result, job.shape)
            finally:
                _close(descriptors)
            if outcome == Outcome.ANSWERED and array is None:
                outcome = Outcome.CRASHED
        except ConnectionError:
            pass
        except OSError as error:
            raise DecoderUnavailableError(
                f"The {job.kind} was not decoded ({error.strerror}); try again later."
            ) from error
        finally:
            if outcome not in (Outcome.ANSWERED, Outcome.REFUSED, Outcome.FAILED):
                exit_code = self._end()
                metrics.count_ended_decoder(outcome.name.lower())
        if array is None:
            raise _error(job, outcome, result, exit_code, settings)
        return array

    def _send(self, request: Request, data: bytes) -> None:
        with open(os.memfd_create("medium"), "wb", buffering=0) as file:
            written = 0
            while written < len(data):
                written += file.write(memoryview(data)[written:])
            file.seek(0)
            socket.send_fds(self._socket, [pickle.dumps(tuple(request))], [file.fileno()])

    def _receive(self) -> tuple[Outcome, Any, list[int]]:
        """Receive an answer and its descriptors; a message that no worker would send counts as a crash."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
        except TimeoutError:
            return Outcome.TIMED_OUT, None, []
        try:
            outcome, result = json.loads(message)
            return Outcome(outcome), result, descriptors
        except (ValueError, TypeError, RecursionError):
            _close(descriptors)
            return Outcome.CRASHED, None, []

    def _end(self) -> int | None:
        """End the process; return its exit code if it ended by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        exit_code = self._process.poll()
        self.kill()
        return exit_code


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith("PYTHON")}
    # The worker must find the same package as this process, and NumPy must not start a thread for each core.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**kept, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def _read_array(descriptors: list[int], answered: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Read an array of the expected shape; return None if the answer is anything else."""
    size = math.prod(shape)
    if answered != list(shape) or not descriptors:
        return None
    status = os.fstat(descriptors[0])
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return None
    try:
        with open(descriptors[0], "rb", closefd=False) as file:
            file.seek(0)
            array = np.fromfile(file, np.uint8, size)
    except OSError:
        return None
    return array.reshape(shape) if array.size == size else None


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _error(job: Job, outcome: Outcome, result: Any, exit_code: int | None, settings: Settings) -> Exception:
    medium = f"The {job.kind} ({len(job.data)} bytes)"
    if outcome == Outcome.REFUSED and isinstance(result, str):
        return MediaError(_one_line(result))
    if outcome == Outcome.OUT_OF_MEMORY:
        return takes_too_much_memory(medium, settings)
    if outcome == Outcome.TIMED_OUT or exit_code in (-signal.SIGALRM, -signal.SIGPROF):
        return takes_too_long(medium, settings)
    if exit_code == -signal.SIGKILL:
        return DecoderUnavailableError(
            f"{medium} was not decoded, because the system killed its decoder, perhaps for lack of memory; "
            "try again later."
        )
    if outcome == Outcome.FAILED:
        return MediaError(f"{medium} cannot be decoded; {OTHER_FORMAT[job.kind]}.", detail=_one_line(str(result)))
    sentence = f"{medium} cannot be decoded, because its decoder crashed; {OTHER_FORMAT[job.kind]}."
    return MediaError(sentence, detail=f"exit code {exit_code}")


def _one_line(text: str) -> str:
    """Return a text in a form that is safe for clients and logs: one short, printable line."""
    text = " ".join(text.split())
    text = text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE - 3]}..."
    return "".join(character if character.isprintable() else "?" for character in text)


_MAKING_POOL = threading.Lock()


def shared_pool(num_sharers: int = 1) -> DecodePool:
    """Return this process's pool; the first call makes it.

    Args:
        num_sharers: see `DecodePool`.

    Raises:
        ValueError: a setting in the environment is not valid.
    """
    global _shared_pool
    with _MAKING_POOL:
        if _shared_pool is None:
            _shared_pool = DecodePool(read_settings(), num_sharers)
            atexit.register(_shared_pool.close)
        return _shared_pool


_shared_pool: DecodePool | None = None
