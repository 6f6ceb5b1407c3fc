"""Registers, spills, shared memory and tensor-core instructions of every compiled kernel; needs no GPU.

    python -m benchmarks.kernel_resources

Compiles each kernel for each chip, type and block size that may be chosen, at the shapes of
LanguageBind's towers, and prints a table. Exits with 1 if one spills, has too much shared
memory for its chip, or multiplies matrices without tensor cores. Writes no results.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_videollava.kernels import add_norm, frame_patch_embed, temporal_attention
from vllm_videollava.kernels.dispatch import operand_type

# Bytes of shared memory that one program may have: CUDA programming guide, technical specifications.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
FEATURES, HEAD_SIZE, NUM_FRAMES, PATCH = 1024, 64, 8, 14
DEPTH = frame_patch_embed.padded_depth(PATCH)
# In which the patch embedding multiplies.
PRODUCT_TYPES = {torch.bfloat16: "fp16", torch.float16: "fp16", torch.float32: "fp32"}


class Case(NamedTuple):
    """One kernel as one choice of types and constants compiles it."""

    kernel: Any
    chip: int
    dtype: torch.dtype
    pointers: dict[str, str]
    floats: tuple[str, ...]
    constants: dict[str, Any]
    options: dict[str, int]
    multiplies: bool

    @property
    def name(self) -> str:
        blocks = [value for name, value in self.constants.items() if name.startswith("BLOCK_")]
        return f"{self.kernel.__name__.strip('_')} {'x'.join(map(str, blocks))} {TYPES[self.dtype]} sm_{self.chip}"


class Resources(NamedTuple):
    name: str
    registers: int
    stack: int
    shared: int
    tensor_cores: int
    faults: tuple[str, ...]


def cases() -> Iterator[Case]:
    """Everything that may be compiled for the published towers."""
    for chip in SHARED_LIMIT:
        for dtype in TYPES:
            for make in (_fold, _unfold, _normalise, _attention, _add_layer, _add_embedding):
                yield make(chip, dtype)


def _fold(chip: int, dtype: torch.dtype) -> Case:
    colours = ("red", "green", "blue")
    return Case(
        frame_patch_embed._fold_kernel,
        chip,
        dtype,
        {"weight_ptr": f"*{TYPES[dtype]}", "matrix_ptr": f"*{PRODUCT_TYPES[dtype]}", "bias_ptr": "*fp32"},
        tuple(f"{what}_{colour}" for what in ("scale", "mean") for colour in colours),
        {"PATCH": PATCH, "DEPTH": DEPTH, "BLOCK_DEPTH": triton.next_power_of_2(DEPTH)},
        {},
        multiplies=False,
    )


def _unfold(chip: int, dtype: torch.dtype) -> Case:
    return Case(
        frame_patch_embed._unfold_kernel,
        chip,
        dtype,
        {"frames_ptr": "*u8", "rows_ptr": f"*{PRODUCT_TYPES[dtype]}"},
        (),
        {"PATCH": PATCH, "DEPTH": DEPTH, "BLOCK": frame_patch_embed.UNFOLD_BLOCK},
        {},
        multiplies=False,
    )


def _normalise(chip: int, dtype: torch.dtype) -> Case:
    names = ("class_embedding", "position_embedding", "norm_weight", "norm_bias", "output")
    return Case(
        frame_patch_embed._normalise_kernel,
        chip,
        dtype,
        {
            "product_ptr": f"*{PRODUCT_TYPES[dtype]}",
            "bias_ptr": "*fp32",
            **{f"{name}_ptr": f"*{TYPES[dtype]}" for name in names},
        },
        ("eps",),
        {"FEATURES": FEATURES, "BLOCK_FEATURES": FEATURES},
        {"num_warps": 1},
        multiplies=False,
    )


def _attention(chip: int, dtype: torch.dtype) -> Case:
    return Case(
        temporal_attention._temporal_attention_kernel,
        chip,
        dtype,
        dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "output_ptr"), f"*{TYPES[dtype]}"),
        ("scale",),
        {
            "OPERAND": operand_type(dtype),
            "NUM_FRAMES": NUM_FRAMES,
            "HEAD_SIZE": HEAD_SIZE,
            "BLOCK_FRAMES": NUM_FRAMES,
            "BLOCK_ROWS": temporal_attention.BLOCK_ROWS,
            "BLOCK_HEAD": HEAD_SIZE,
        },
        {"num_warps": temporal_attention.NUM_WARPS},
        multiplies=True,
    )


def _add_norm(chip: int, dtype: torch.dtype, per_frame: bool) -> Case:
    tensors = ("hidden_states", "added", "norm_weight", "norm_bias", "total", "normed")
    return Case(
        add_norm._add_norm_kernel,
        chip,
        dtype,
        {f"{name}_ptr": f"*{TYPES[dtype]}" for name in tensors},
        ("eps",),
        {"PER_FRAME": per_frame, "FEATURES": FEATURES, "BLOCK_FEATURES": FEATURES},
        {"num_warps": 1},
        multiplies=False,
    )


_add_layer = partial(_add_norm, per_frame=False)
_add_embedding = partial(_add_norm, per_frame=True)


def measure(case: Case) -> Resources:
    """Compile a case and read what the compiler gave it."""
    names = case.kernel.arg_names
    signature = dict.fromkeys(names, "i32") | case.pointers | dict.fromkeys(case.floats, "fp32")
    signature |= dict.fromkeys(case.constants, "constexpr")
    # As at a launch: PyTorch aligns memory to at least 16 bytes.
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in case.pointers}
    source = ASTSource(case.kernel, signature=signature, constexprs=case.constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.chip, 32), options=case.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"\b{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))
    tensor_cores = len(TENSOR_CORES.findall(compiled.asm["ptx"]))
    shared = compiled.metadata.shared
    faults = {
        "spills": stack > 0,
        "too much shared memory": shared > SHARED_LIMIT[case.chip],
        "no tensor cores": case.multiplies and tensor_cores == 0,
    }
    return Resources(
        case.name, registers, stack, shared, tensor_cores, tuple(fault for fault, found in faults.items() if found)
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(
        f"{'kernel, blocks, type, chip':<58}{'registers':>10}{'stack':>7}{'shared':>8}{'tensor-core instructions':>26}"
    )
    faulty = False
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for row in pool.map(measure_number, range(len(list(cases())))):
            faulty |= bool(row.faults)
            line = f"{row.name:<58}{row.registers:>10}{row.stack:>7}{row.shared:>8}{row.tensor_cores:>26}"
            print(f"{line}  {', '.join(row.faults)}", flush=True)
    sys.exit(int(faulty))


def measure_number(index: int) -> Resources:
    """`measure` for another process, to which a kernel cannot be sent."""
    return measure(list(cases())[index])


if __name__ == "__main__":
    main()
