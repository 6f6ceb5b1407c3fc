"""What the tests share: settings of the engine, checkpoints, media, one server."""

import os
import subprocess
import sys
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
    from demo import free_port, wait_until_healthy

    port = free_port()
    command = [sys.executable, "-m", "vllm_videollava.cli", "serve", str(checkpoint)]
    flags = (
        f"--port {port} --dtype float32 --enforce-eager --allowed-local-media-path / --trust-request-mm-kwargs".split()
    )
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(command + flags, stdout=output, stderr=subprocess.STDOUT)
    try:
        if not wait_until_healthy(port, server):
            pytest.fail(f"The server did not start:\n{log.read_text()[-5000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)
