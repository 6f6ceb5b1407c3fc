"""Finds what Triton compiles when the towers launch the kernels; needs no GPU.

Triton compiles a kernel again for other types and constants, and when a whole number among its
arguments is 1 or a multiple of 16 and was not so before. Here the package's own functions launch
the kernels at the sizes of LanguageBind's towers. Triton is stopped just before it compiles, and
nothing is computed.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import jit

from vllm_videollava.decoding.pixels import IMAGE_MEAN, IMAGE_STD
from vllm_videollava.kernels import add_norm, frame_patch_embed, temporal_attention

# Numbers of frames in one call of a tower.
FRAMES = range(1, 129)
FEATURES, NUM_HEADS, NUM_FRAMES, PATCH, SIZE = 1024, 16, 8, 14, 224
PATCHES = (SIZE // PATCH) ** 2
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
# Triton caches by the number of a device; no real one has this.
NO_DEVICE = -1


class Compilation(NamedTuple):
    """What Triton compiles one kernel with.

    Attributes:
        signature: the type of each argument, by name.
        constants: the values of arguments that are compiled into the kernel.
        attributes: what Triton knows of others, such as divisors.
        options: `OPTIONS`.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, Any]


# By the name of the kernel, and by what Triton tells compilations apart.
Compilations = dict[tuple[str, str], Compilation]


def all_compilations(dtype: torch.dtype) -> Compilations:
    """Return what both towers compile for any of `FRAMES`."""
    result: Compilations = {}
    for frames in FRAMES:
        result |= compilations(frames, dtype, over_time=frames % NUM_FRAMES == 0)
    return result


@functools.cache
def compilations(frames: int, dtype: torch.dtype, *, over_time: bool) -> Compilations:
    """Return what a tower, with or without attention over time, compiles for this number of frames."""
    with recorded() as result:
        _embed_patches(frames, dtype)
        _add_layer(frames, dtype)
        if over_time:
            _attend_over_time(frames, dtype)
    return result


@contextmanager
def recorded() -> Iterator[Compilations]:
    """Collect what launches would compile; they neither compile nor run anything."""
    result: Compilations = {}

    def record(*, key: str, fn: Any, compile: dict[str, Any], **_others: Any) -> bool:
        kernel = fn.jit_function
        constants = {kernel.arg_names[index]: value for (index,), value in compile["constants"].items()}
        options = {name: compile[name] for name in OPTIONS}
        (attributes,) = compile["configs"]
        result[kernel.__name__, key] = Compilation(kernel, compile["signature"], constants, attributes, options)
        # Tells Triton that someone else compiles it; so it does not launch either.
        return True

    device = SimpleNamespace(
        get_current_device=lambda: NO_DEVICE,
        get_current_stream=lambda _device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    with mock.patch.object(jit, "driver", SimpleNamespace(active=device)), knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = record
        yield result


def _embed_patches(frames: int, dtype: torch.dtype) -> None:
    # Step by step, without the product in between, which is slow on a CPU and not Triton's.
    weight = torch.empty(FEATURES, 3, PATCH, PATCH, dtype=dtype)
    matrix, bias = frame_patch_embed._fold(weight, IMAGE_MEAN, IMAGE_STD)
    pixels = torch.empty(frames, 3, SIZE, SIZE, dtype=torch.uint8)
    frame_patch_embed._unfold(pixels, PATCH, matrix.shape[1], matrix.dtype)
    product = torch.empty(frames * PATCHES, FEATURES, dtype=matrix.dtype)
    vector, positions = torch.empty(FEATURES, dtype=dtype), torch.empty(1 + PATCHES, FEATURES, dtype=dtype)
    frame_patch_embed._normalise(product, bias, vector, positions, vector, vector, 1e-5, dtype)


def _add_layer(frames: int, dtype: torch.dtype) -> None:
    states, vector = _states(frames, dtype), torch.empty(FEATURES, dtype=dtype)
    add_norm.add_norm_by_triton(states, states, vector, vector, eps=1e-5)


def _attend_over_time(frames: int, dtype: torch.dtype) -> None:
    states, vector = _states(frames, dtype), torch.empty(FEATURES, dtype=dtype)
    embedding = torch.empty(1, NUM_FRAMES, FEATURES, dtype=dtype)
    add_norm.add_norm_by_triton(states, embedding, vector, vector, eps=1e-5)
    parts = _states(frames, dtype, 3 * FEATURES).chunk(3, -1)
    temporal_attention.temporal_attention_by_triton(*parts, num_frames=NUM_FRAMES, num_heads=NUM_HEADS, scale=0.125)


def _states(frames: int, dtype: torch.dtype, features: int = FEATURES) -> torch.Tensor:
    return torch.empty(frames, 1 + PATCHES, features, dtype=dtype)
