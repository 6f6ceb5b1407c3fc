"""Times the video tower and the projector inside vLLM's worker.

`LLM.apply_model` calls `start` and `stop` there, which needs VLLM_ALLOW_INSECURE_SERIALIZATION=1.
"""

import time
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

BEGIN = "begin"
PATCHES, LAYERS, PROJECTOR = "patch embedding", "tower's layers", "projector"

Mark = float | torch.cuda.Event
_hooks: list[RemovableHandle] = []
_begins: list[float] = []
_batches: list[list[Mark]] = []


def start(model: nn.Module) -> None:
    """Watch every batch of videos from now on, without making the device wait."""
    _begins.clear()
    _batches.clear()
    tower, projector = model.video_tower, model.multi_modal_projector
    _hooks[:] = [
        tower.register_forward_pre_hook(_begin_batch),
        tower.encoder.layers[0].register_forward_pre_hook(_mark),
        tower.register_forward_hook(_mark),
        projector.register_forward_pre_hook(_mark),
        projector.register_forward_hook(_mark),
    ]
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def stop(model: nn.Module) -> dict[str, float]:
    """Stop watching.

    Returns:
        the seconds of each stage, for all batches together, and the time of `time.perf_counter` when the first began.
    """
    for hook in _hooks:
        hook.remove()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    points = zip(*_batches, strict=True)
    tower_begins, layers_begin, layers_end, projector_begins, projector_ends = points
    return {
        BEGIN: _begins[0],
        PATCHES: _seconds(tower_begins, layers_begin),
        LAYERS: _seconds(layers_begin, layers_end),
        PROJECTOR: _seconds(projector_begins, projector_ends),
    }


def _begin_batch(*_: Any) -> None:
    _begins.append(time.perf_counter())
    _batches.append([])
    _mark()


def _mark(*_: Any) -> None:
    if torch.cuda.is_available():
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        _batches[-1].append(event)
    else:
        _batches[-1].append(time.perf_counter())


def _seconds(begins: tuple[Mark, ...], ends: tuple[Mark, ...]) -> float:
    pairs = zip(begins, ends, strict=True)
    if torch.cuda.is_available():
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000
    return sum(end - begin for begin, end in pairs)
