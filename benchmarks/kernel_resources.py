"""Registers, spills, shared memory and matrix instructions of every compiled kernel; needs no GPU.

    python -m benchmarks.kernel_resources

Compiles, for each chip and type, what the towers' launches compile, and prints a table. Exits with
1 if a kernel spills, has too much shared memory for its chip, or multiplies matrices without tensor
cores. Instructions are those of the whole kernel in the chip's own code (SASS), apart from padding;
kernels that multiply have no loops, so none runs twice. Writes no results.
"""

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernel_launches import Compilation, all_compilations

# Bytes of shared memory that one program may have: CUDA programming guide, technical specifications.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# A line of SASS: its address, perhaps a predicate, and the instruction's name.
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
# Those of tensor cores, as sm_80, sm_90 and sm_100 call them.
MATRIX_INSTRUCTION = re.compile(r"(?:HMMA|HGMMA|UTC[A-Z]*MMA)\b")


class Case(NamedTuple):
    """What a launch compiles, for one chip; `dtype` is the model's."""

    compilation: Compilation
    chip: int
    dtype: torch.dtype
    multiplies: bool

    @property
    def name(self) -> str:
        kernel, constants = self.compilation.kernel, self.compilation.constants
        blocks = "x".join(str(value) for name, value in constants.items() if name.startswith("BLOCK_"))
        flags = [name.lower() for name, value in constants.items() if value is True]
        words = (kernel.__name__.strip("_"), blocks, *flags, TYPES[self.dtype], f"sm_{self.chip}")
        return " ".join(word for word in words if word)


class Resources(NamedTuple):
    name: str
    registers: int
    stack: int
    shared: int
    instructions: int
    matrix_instructions: int
    faults: tuple[str, ...]

    @property
    def per_matrix_instruction(self) -> str:
        return f"{self.instructions / self.matrix_instructions:.1f}" if self.matrix_instructions else "-"


@functools.cache
def cases() -> tuple[Case, ...]:
    """Everything that the towers' launches compile."""
    return tuple(
        Case(compilation, chip, dtype, multiplies="tl.dot(" in compilation.kernel.src)
        for chip in SHARED_LIMIT
        for dtype in TYPES
        for compilation in all_compilations(dtype).values()
    )


def measure(case: Case) -> Resources:
    """Compile a case and read what the compiler gave it."""
    kernel, signature, constants, attributes, options = case.compilation
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.chip, 32), options=options)
    text = _disassemble(compiled.asm["cubin"])
    registers, stack = (int(re.search(rf"\b{what}:(\d+)", text)[1]) for what in ("REG", "STACK"))
    instructions = [name for name in INSTRUCTION.findall(text) if name != "NOP"]
    matrix_instructions = sum(bool(MATRIX_INSTRUCTION.match(name)) for name in instructions)
    shared = compiled.metadata.shared
    faults = {
        "spills": stack > 0,
        "too much shared memory": shared > SHARED_LIMIT[case.chip],
        "no tensor cores": case.multiplies and matrix_instructions == 0,
    }
    found = tuple(fault for fault, is_found in faults.items() if is_found)
    return Resources(case.name, registers, stack, shared, len(instructions), matrix_instructions, found)


def _disassemble(cubin: bytes) -> str:
    """Return the resources and the instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", "--dump-sass", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(
        f"{'kernel, blocks, type, chip':<52}{'registers':>10}{'stack':>7}{'shared':>8}{'instructions':>14}"
        f"{'matrix instructions':>21}{'instructions per matrix instruction':>37}"
    )
    faulty = False
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for row in pool.map(measure_number, range(len(cases()))):
            faulty |= bool(row.faults)
            line = f"{row.name:<52}{row.registers:>10}{row.stack:>7}{row.shared:>8}{row.instructions:>14}"
            line += f"{row.matrix_instructions:>21}{row.per_matrix_instruction:>37}"
            print(f"{line}  {', '.join(row.faults)}", flush=True)
    sys.exit(int(faulty))


def measure_number(index: int) -> Resources:
    """Measure a case in another process, by its number, because kernels cannot be pickled."""
    return measure(cases()[index])


if __name__ == "__main__":
    main()
