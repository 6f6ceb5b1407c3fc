"""A process that decodes for `pool`: python -P -m vllm_videollava.decoding.worker

Its standard input is a socket. Once started, it reports that it is ready. A
request is a function's name with its arguments, pickled, and a descriptor of a
file with the medium. An answer is an outcome in JSON: an array's shape, with a
descriptor of a file that holds the uint8 array, or an error. Answers are not
pickled, because nothing from a process that has decoded a hostile file may be
unpickled. Both files are in memory and have no name, so that none can be left
behind. Nobody is hurt when this process dies: the kernel ends it when a request
takes too long, or when the parent process is gone. It is not a sandbox: code
that takes it over can still reach files and the network.
"""

import ctypes
import fcntl
import gc
import json
import os
import pickle
import pkgutil
import resource
import signal
import socket
from contextlib import suppress
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from vllm_videollava.decoding.errors import MediaError

MESSAGE_BYTES = 1 << 16
_PR_SET_NO_NEW_PRIVS = 38


class Outcome(IntEnum):
    """The outcome of a request; a worker reports `READY` once at its start, and then only the first four."""

    ANSWERED = 0
    REFUSED = 1
    OUT_OF_MEMORY = 2
    FAILED = 3
    READY = 4
    TIMED_OUT = 5
    CRASHED = 6


class Request(NamedTuple):
    """A job for a worker.

    Attributes:
        function: module:name, called with the medium as an open file and with `arguments`; returns uint8.
        seconds_of_work: limit for the processor time of all threads together.
        seconds: limit for the elapsed time.
        memory_bytes: limit for the memory, beyond what the worker has at its start.
    """

    function: str
    arguments: dict[str, Any]
    seconds_of_work: float
    seconds: float
    memory_bytes: int


Answer = tuple[Outcome, Any]
"""The outcome, and with it a shape, a sentence, nothing or an error's text."""


def main() -> None:
    _give_up_privileges()
    # Imported here: not during a request, and not in the parent, which needs only the messages.
    from vllm_videollava.decoding import image, video  # noqa: F401

    gc.freeze()
    # The parent process may end at any time.
    with suppress(ConnectionError):
        _serve(socket.socket(fileno=0))


def _serve(server: socket.socket) -> None:
    data_bytes = resource.getpagesize() * _count_data_pages()
    server.send(json.dumps((Outcome.READY, None)).encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, MESSAGE_BYTES, 1)
        if not message:
            return
        request = Request(*pickle.loads(message))
        _limit(resource.RLIMIT_DATA, data_bytes + request.memory_bytes)
        _die_with(server, True)
        _set_timers(request.seconds_of_work, request.seconds)
        answer, result = _answer(pkgutil.resolve_name(request.function), request.arguments, descriptors[0])
        _set_timers(0, 0)
        _die_with(server, False)
        socket.send_fds(server, [json.dumps(answer).encode()], result)
        for descriptor in result:
            os.close(descriptor)
        # A decoded frame and its side data form a reference cycle.
        gc.collect()


def _answer(function, arguments: dict[str, Any], descriptor: int) -> tuple[Answer, list[int]]:
    try:
        with os.fdopen(descriptor, "rb") as file:
            array = np.ascontiguousarray(function(file, **arguments))
        result = os.memfd_create("decoded")
        with os.fdopen(result, "wb", closefd=False) as file:
            array.tofile(file)
        return (Outcome.ANSWERED, array.shape), [result]
    except MediaError as error:
        return (Outcome.REFUSED, str(error)), []
    except MemoryError:
        return (Outcome.OUT_OF_MEMORY, None), []
    except Exception as error:
        return (Outcome.FAILED, f"{type(error).__name__}: {error}"[:1000]), []


def _give_up_privileges() -> None:
    """Prevent core files with a client's medium and new privileges; be the first to go when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_NOFILE, 64)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _limit(what: int, amount: int) -> None:
    """Set a limit, but no higher than the hard limit that is already in force."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def _set_timers(seconds_of_work: float, seconds: float) -> None:
    """Have the kernel end this process after so much processor time or so much elapsed time; 0 means never."""
    signal.setitimer(signal.ITIMER_PROF, seconds_of_work)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _count_data_pages() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5])


def _die_with(server: socket.socket, on: bool) -> None:
    """Choose whether the kernel ends this process when the other end of the socket is closed."""
    flags = fcntl.fcntl(server, fcntl.F_GETFL)
    fcntl.fcntl(server, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(server, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)


if __name__ == "__main__":
    main()
