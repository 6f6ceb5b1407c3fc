"""A process that decodes for `decode_pool`: python -P -m vllm_videollava.decode_worker

Its standard input is a socket. A request is the name of a function with its
arguments, pickled, and a file descriptor with the medium. An answer is a file
descriptor with a uint8 array and its shape, or what went wrong, in JSON: who
has decoded a hostile file is not to be unpickled. Both files lie in memory and
have no name, so that none can be left behind. Nobody is hurt when this process
dies: the kernel ends it when a request takes too long, or when the process
that asked is gone.
"""

import fcntl
import gc
import json
import os
import pickle
import pkgutil
import resource
import signal
import socket
from typing import Any

import numpy as np

from vllm_videollava.errors import MediaError

MESSAGE_BYTES = 1 << 16
ANSWERED, REFUSED, OUT_OF_MEMORY, FAILED = range(4)
Answer = tuple[int, Any]
"""One of the four above, and a shape, a sentence, nothing or the error's text."""


def main() -> None:
    # Neither while a request waits, nor in the process that knows this file for its messages only.
    from vllm_videollava import clip_decoder, image_decoder  # noqa: F401

    gc.freeze()
    server = socket.socket(fileno=0)
    data_bytes = resource.getpagesize() * _count_data_pages()
    while True:
        request, descriptors, _, _ = socket.recv_fds(server, MESSAGE_BYTES, 1)
        if not request:
            return
        function, arguments, seconds, memory_bytes = pickle.loads(request)
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes + memory_bytes, resource.RLIM_INFINITY))
        _die_with(server, True)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer, result = _answer(pkgutil.resolve_name(function), arguments, descriptors[0])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _die_with(server, False)
        try:
            socket.send_fds(server, [json.dumps(answer).encode()], result)
        except BrokenPipeError:
            return
        for descriptor in result:
            os.close(descriptor)
        # A decoded frame and its side data refer to each other.
        gc.collect()


def _answer(function, arguments: dict[str, Any], descriptor: int) -> tuple[Answer, list[int]]:
    try:
        with os.fdopen(descriptor, "rb") as file:
            array = np.ascontiguousarray(function(file, **arguments))
        result = os.memfd_create("decoded")
        with os.fdopen(result, "wb", closefd=False) as file:
            array.tofile(file)
        return (ANSWERED, array.shape), [result]
    except MediaError as error:
        return (REFUSED, str(error)), []
    except MemoryError:
        return (OUT_OF_MEMORY, None), []
    except Exception as error:
        return (FAILED, f"{type(error).__name__}: {error}"[:1000]), []


def _count_data_pages() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5])


def _die_with(server: socket.socket, on: bool) -> None:
    """Have the kernel end this process, or not, when the other end of the socket is closed."""
    flags = fcntl.fcntl(server, fcntl.F_GETFL)
    fcntl.fcntl(server, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(server, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)


if __name__ == "__main__":
    main()
