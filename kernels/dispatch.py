"""Which tensors Triton can take, in which type it multiplies them, and how a kernel becomes a PyTorch operator."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from triton import knobs

# Kernels are compiled or interpreted as it was when they were imported.
INTERPRETED = knobs.runtime.interpret


def takes(tensor: torch.Tensor) -> bool:
    """Whether Triton can take a tensor: on a GPU, or anywhere under its interpreter (`TRITON_INTERPRET=1`)."""
    return tensor.is_cuda or INTERPRETED


def operand_type(dtype: torch.dtype) -> tl.dtype:
    """The type in which `tl.dot` multiplies tensors of `dtype`; it changes no product.

    Triton's interpreter (3.9) keeps bfloat16 as integers and would multiply those.
    """
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else getattr(tl, str(dtype).removeprefix("torch."))


def register_op(launch: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that launches a kernel an operator, which torch.compile and CUDA graphs take as one step.

    `torch.library.custom_op` would do, but costs more time at every call.

    Args:
        launch: has annotations, and changes none of its arguments.
        fake: returns what `launch` returns, with nothing computed.
    """
    name = f"vllm_videollava::{launch.__name__}"
    torch.library.define(name, torch.library.infer_schema(launch, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, ("cuda", "cpu"), launch)
    torch.library.register_fake(name, fake)
    return getattr(torch.ops.vllm_videollava, launch.__name__)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs a device can run side by side at least; 1 for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
