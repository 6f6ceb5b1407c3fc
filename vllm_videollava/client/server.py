"""Starts a server in a separate process, on a free port of this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_HOST = "127.0.0.1"
_SECONDS_TO_START, _SECONDS_TO_STOP = 180, 60


class LocalServer(NamedTuple):
    """A running server.

    Attributes:
        url: its URL, without `/v1`.
        process: the API server; engine and workers are its children.
        log: file with the server's output.
        seconds: time that it took to start.
    """

    url: str
    process: subprocess.Popen
    log: Path
    seconds: float


@contextmanager
def local_server(model: str | Path, log: Path, *flags: str, **environment: str) -> Iterator[LocalServer]:
    """Run `vllm-videollava serve` until the block ends; the server has three minutes to start.

    Args:
        log: file for the server's output.
        flags: flags of `vllm serve`.
        environment: variables, in addition to those of this process.

    Raises:
        RuntimeError: the server did not start; the end of its log follows the sentence.
        subprocess.TimeoutExpired: the server did not stop within a minute and was killed.
    """
    port = _free_port()
    serve = [sys.executable, "-m", "vllm_videollava.commands.main", "serve"]
    command = [*serve, str(model), "--host", _HOST, "--port", str(port)]
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        if not _wait_until_healthy(port, process):
            raise RuntimeError(f"The server did not start:\n{log.read_text()[-5000:]}")
        yield LocalServer(f"http://{_HOST}:{port}", process, log, time.monotonic() - start)
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            # This ends the server and all its children.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def _wait_until_healthy(port: int, server: subprocess.Popen) -> bool:
    deadline = time.monotonic() + _SECONDS_TO_START
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.5)
    return False
