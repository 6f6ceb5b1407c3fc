"""Checks that a checkpoint has the tensors of its model and no others."""

import torch

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.conversion.files import StoredTensor
from vllm_videollava.conversion.source import Model
from vllm_videollava.tensors.merging import UNQUANTISED, join_names
from vllm_videollava.tensors.names import is_computed_with
from vllm_videollava.tensors.shapes import model_shapes


def select(model: Model, config: VideoLlavaConfig) -> Model:
    """Return the tensors of `model` that belong to it, in its own order; buffers and the like are left out.

    Raises:
        ValueError: a tensor is missing, misshapen or surplus. The sentence names it.
    """
    shapes = model_shapes(config)
    needed = {name for name in shapes if is_computed_with(name, config)}
    if missing := needed - model.keys():
        raise ValueError(f"The checkpoint lacks tensors that this model needs: {join_names(missing)}.")
    surplus = [stored.name for name, stored in model.items() if name not in shapes and is_computed_with(name, config)]
    if surplus:
        raise ValueError(f"The checkpoint has tensors that this model does not use: {join_names(surplus)}.")
    for name in needed:
        _check(model[name], shapes[name])
    return {name: model[name] for name, shape in shapes.items() if name in model and model[name].spec.shape == shape}


def _check(stored: StoredTensor, shape: torch.Size) -> None:
    if stored.spec.shape != shape:
        raise ValueError(
            f"The checkpoint's tensor {stored.name} has shape {list(stored.spec.shape)}; it must be {list(shape)}."
        )
    if stored.spec.dtype not in UNQUANTISED:
        raise ValueError(
            f"The checkpoint's tensor {stored.name} is {stored.spec.dtype}; only weights that are not quantised can be "
            "converted."
        )
