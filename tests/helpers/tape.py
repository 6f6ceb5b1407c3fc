"""A tape in place of a CUDA graph: it records every operation on tensors and repeats it on the same memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.v1.worker import encoder_cudagraph


class Tape(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`, and for the context that records one."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.steps.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, result in self.steps:
            fresh = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record_tapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vLLM record tapes where it would capture CUDA graphs of encoders."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool, stream: graph)
    monkeypatch.setattr(encoder_cudagraph, "current_stream", lambda: None)
