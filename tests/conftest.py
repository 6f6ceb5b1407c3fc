"""What the tests share: settings of the engine, checkpoints, media, one server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(ROOT / "examples")]

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_vllm_cache(tmp_path_factory):
    # vLLM remembers what it learnt of a model class by the hash of one file.
    os.environ["VLLM_CACHE_ROOT"] = str(tmp_path_factory.mktemp("vllm_cache"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A random checkpoint in the original format, float32."""
    from random_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "video-llava")


@pytest.fixture(scope="session")
def server_url(checkpoint, tmp_path_factory) -> Iterator[str]:
    """Address of a running server on `checkpoint`, which may read local files."""
    port = _free_port()
    command = [sys.executable, "-m", "vllm_videollava.cli", "serve", str(checkpoint)]
    flags = (
        f"--port {port} --dtype float32 --enforce-eager --allowed-local-media-path / --trust-request-mm-kwargs".split()
    )
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(command + flags, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(url: str, server: subprocess.Popen, log: Path, seconds: int = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"The server did not start:\n{log.read_text()[-5000:]}")
