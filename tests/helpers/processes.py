"""Servers, the processes below them, and what those hold."""

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_videollava.client.server import LocalServer, local_server
from vllm_videollava.decoding.cpu_count import cpu_count

MOST_DECODERS = cpu_count() + 2 * math.ceil(cpu_count() / 4)
"""Of a server: a quarter as many for small videos as for large ones, and again as many for images."""


@contextmanager
def running_server(checkpoint: Path, log: Path, **environment: str) -> Iterator[LocalServer]:
    import vllm

    flags = ["--dtype", "float32", "--enforce-eager", "--allowed-local-media-path", "/"]
    if vllm.__version_tuple__ >= (0, 31):
        # Before, vLLM trusts requests anyway.
        flags.append("--trust-request-mm-kwargs")
    with local_server(checkpoint, log, *flags, **environment) as server:
        below = process_tree(server.process.pid)
        yield server
        if server.process.poll() is None:
            below = process_tree(server.process.pid)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def process_tree(pid: int) -> list[int]:
    """Return a process and all below it that live."""
    children = []
    # A process that ends meanwhile has no children any more.
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    return [pid, *(below for child in children for below in process_tree(child))]


def count_resources(pid: int) -> dict[str, int]:
    """Count what a server, the process `pid`, and all below it hold; it starts decoders until it has the most."""
    pids = process_tree(pid)
    decoders = sum("vllm_videollava.decoding.worker" in Path(f"/proc/{one}/cmdline").read_text() for one in pids)
    maps = "".join(Path(f"/proc/{one}/maps").read_text() for one in pids)
    memory = [Path(f"/proc/{one}/smaps_rollup").read_text() for one in pids]
    return {
        "decoders too many": max(0, decoders - MOST_DECODERS),
        "processes": len(pids) - decoders,
        # One for each decoder.
        "file descriptors": len(os.listdir(f"/proc/{pid}/fd")) - decoders,
        "shared memory": len(re.findall(r"/dev/shm/|/memfd:", maps)),
        "memory in MiB": sum(int(re.search(r"^Pss: +(\d+) kB", one, re.M)[1]) for one in memory) >> 10,
    }


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
