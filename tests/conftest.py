"""Shared by the tests: settings of the engine, checkpoints, media, one server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.asking import MAX_MODEL_LEN
from helpers.processes import running_server
from vllm_videollava.client.server import LocalServer
from vllm_videollava.decoding.settings import read_settings

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Otherwise vLLM waits for 1 s and for 4 s, and asks again.
os.environ["VLLM_MEDIA_FETCH_MAX_RETRIES"] = "1"


def pytest_addoption(parser):
    parser.addoption("--fuzz-videos", type=int, default=140, help="damaged videos that the server is asked about")
    parser.addoption("--fuzz-images", type=int, default=60, help="damaged images that the server is asked about")
    parser.addoption("--ray-clips", type=int, default=40, help="videos that replicas of the Ray example answer")
    parser.addoption("--attack-rounds", type=int, default=1, help="rounds of odd requests, the first always the same")
    parser.addoption("--features", action="store_true", help="run the rows of docs/features.md, and write the page")


def pytest_configure(config):
    from helpers import features, refusals

    config.pluginmanager.register(features, "features")
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
    from helpers.random_checkpoint import write_checkpoint

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
