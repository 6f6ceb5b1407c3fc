"""Connects PyTorch and Triton: tells which tensors kernels take and which type they multiply, and makes operators."""

from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from triton import knobs

# Fixed at import: Triton decides then whether to compile or to interpret kernels.
INTERPRETED = knobs.runtime.interpret


def takes(tensor: torch.Tensor) -> bool:
    """Tell whether Triton can take a tensor: on a GPU, or anywhere under its interpreter (`TRITON_INTERPRET=1`)."""
    return tensor.is_cuda or INTERPRETED


def operand_type(dtype: torch.dtype) -> tl.dtype:
    """Return the type in which `tl.dot` multiplies tensors of `dtype`; it does not change the products.

    Triton's interpreter (3.9) stores bfloat16 as integers and would multiply these.
    """
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else getattr(tl, str(dtype).removeprefix("torch."))


def operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn a function that launches a kernel into an operator, which torch.compile and CUDA graphs treat as one step.

    The function must have annotations and must not change its arguments.
    `torch.library.custom_op` would also do, but costs more time at every call.

    Args:
        fake: returns an empty tensor like the function's result, or several,
            without computing anything.
    """

    def register(launch: Callable[..., Any]) -> Callable[..., Any]:
        name = f"vllm_videollava::{launch.__name__}"
        schema = torch.library.infer_schema(launch, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, ("cuda", "cpu"), launch)
        torch.library.register_fake(name, fake)
        return getattr(torch.ops.vllm_videollava, launch.__name__)

    return register
