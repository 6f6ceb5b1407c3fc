"""What the tests share: settings of the engine, checkpoints, media, one server."""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vllm_videollava.client.server import LocalServer, local_server
from vllm_videollava.decoding.cpu_count import cpu_count
from vllm_videollava.decoding.settings import read_settings

MAX_MODEL_LEN = 600
"""Of `renderer`."""
MOST_DECODERS = cpu_count() + 2 * math.ceil(cpu_count() / 4)
"""Of a server: a quarter as many for small videos as for large ones, and again as many for images."""
TESTS = Path(__file__).parent
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(ROOT / "benchmarks"), str(ROOT / "training")]

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Otherwise vLLM waits for 1 s and for 4 s, and asks again.
os.environ["VLLM_MEDIA_FETCH_MAX_RETRIES"] = "1"


def pytest_addoption(parser):
    parser.addoption("--fuzz-videos", type=int, default=140, help="damaged videos that the server is asked about")
    parser.addoption("--fuzz-images", type=int, default=60, help="damaged images that the server is asked about")
    parser.addoption("--attack-rounds", type=int, default=1, help="rounds of odd requests, the first always the same")


def pytest_configure(config):
    import refusals

    config.pluginmanager.register(refusals, "refusals")


@pytest.fixture(scope="session", autouse=True)
def _own_vllm_cache(tmp_path_factory):
    # vLLM remembers what it learnt of a model class by the hash of one file.
    os.environ["VLLM_CACHE_ROOT"] = str(tmp_path_factory.mktemp("vllm_cache"))


@pytest.fixture(autouse=True)
def _own_settings():
    """Let each test set the environment that settings are read from."""
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A random checkpoint in the original format, float32."""
    from random_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "video-llava")


@pytest.fixture(scope="session")
def renderer(checkpoint):
    """vLLM's renderer for `checkpoint`, as an engine would have it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins
    from vllm.renderers import renderer_from_config

    load_general_plugins()
    engine_args = EngineArgs(str(checkpoint), dtype="float32", max_model_len=MAX_MODEL_LEN)
    renderer = renderer_from_config(engine_args.create_engine_config())
    yield renderer
    renderer.shutdown()


@pytest.fixture(scope="session")
def server(checkpoint, tmp_path_factory) -> Iterator[LocalServer]:
    """A running server on `checkpoint`, which may read local files."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with running_server(checkpoint, log) as server:
        yield server


@pytest.fixture(scope="session")
def server_url(server) -> str:
    return server.url


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
