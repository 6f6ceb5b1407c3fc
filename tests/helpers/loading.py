"""Builds models as an engine's worker does, in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model


@contextmanager
def model_loading(rendezvous: Path) -> Iterator[Callable[..., nn.Module]]:
    """Yield a function that builds the model of a checkpoint's folder with flags of the engine.

    Args:
        rendezvous: a file that does not exist yet.
    """

    def load(folder: Path, **options) -> nn.Module:
        with set_current_vllm_config(config := engine_config(folder, **options)):
            init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
            return get_model(vllm_config=config)

    with pytest.MonkeyPatch.context() as patch:
        # The loader asks for an accelerator; without one there is nothing to empty.
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        yield load
    cleanup_dist_env_and_memory()


def engine_config(folder: Path, **options) -> VllmConfig:
    return EngineArgs(model=str(folder), dtype="float32", enforce_eager=True, **options).create_engine_config()
