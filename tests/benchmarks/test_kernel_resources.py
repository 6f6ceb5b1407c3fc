"""The kernels fit every chip, and what is compiled for one call serves up to 128 frames; needs no GPU."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
import triton
import triton.language as tl

from benchmarks import kernel_launches, kernel_resources
from benchmarks.kernel_launches import FRAMES, NUM_FRAMES
from helpers.paths import ROOT

MOST_COMPILATIONS = 4


def test_each_kernel_is_compiled_a_few_times_at_most():
    counts = Counter(kernel for kernel, _ in kernel_launches.all_compilations(torch.bfloat16))
    patch_embedding = {"_fold_kernel", "_unfold_kernel", "_normalise_kernel"}
    assert counts.keys() == patch_embedding | {"_add_norm_kernel", "_temporal_attention_kernel"}
    assert max(counts.values()) <= MOST_COMPILATIONS, counts


@pytest.mark.parametrize(
    ("over_time", "counts"), [(False, FRAMES), (True, FRAMES[NUM_FRAMES - 1 :: NUM_FRAMES])], ids=["images", "videos"]
)
def test_the_first_call_compiles_what_later_ones_need(over_time, counts):
    """So a warm server compiles nothing, at least for up to 128 frames at once."""
    first, *later = (kernel_launches.compilations(count, torch.bfloat16, over_time=over_time) for count in counts)
    for count, compilations in zip(counts[1:], later, strict=True):
        assert compilations.keys() == first.keys(), count


def test_a_video_compiles_what_images_need():
    image = kernel_launches.compilations(1, torch.bfloat16, over_time=False)
    assert image.keys() <= kernel_launches.compilations(NUM_FRAMES, torch.bfloat16, over_time=True).keys()


@triton.jit
def specialised(output_ptr, frames):
    tl.store(output_ptr, frames)


@triton.jit(do_not_specialize=["frames"])
def not_specialised(output_ptr, frames):
    tl.store(output_ptr, frames)


@pytest.mark.parametrize(("kernel", "compilations"), [(specialised, 3), (not_specialised, 1)], ids=["yes", "no"])
def test_further_compilations_are_noticed(kernel, compilations):
    with kernel_launches.recorded() as recorded:
        for frames in FRAMES:
            kernel[(1,)](torch.empty(1), frames)
    assert len(recorded) == compilations


def test_kernels_fit_every_chip():
    """No spills, shared memory within the limit, matrices multiplied by tensor cores; prints the table."""
    table = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernel_resources"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    print(table.stdout)
    assert table.returncode == 0, table.stdout + table.stderr
    assert len(table.stdout.splitlines()) == 1 + len(kernel_resources.cases())


def find_case(kernel: str, chip: int) -> kernel_resources.Case:
    return next(case for case in kernel_resources.cases() if case.chip == chip and case.name.startswith(kernel))


def test_kernels_are_compiled_as_launches_compile_them():
    kernel, signature, constants, attributes, options = find_case("unfold_kernel", 90).compilation
    assert signature["stride_x"] == "constexpr"
    assert constants["stride_x"] == 1
    assert attributes[kernel.arg_names.index("stride_frame"),] == [["tt.divisibility", 16]]
    assert options["num_warps"] == 4


def with_rows(case: kernel_resources.Case, rows: int, **options: int) -> kernel_resources.Case:
    constants = case.compilation.constants | {"BLOCK_ROWS": rows}
    options = case.compilation.options | options
    return case._replace(compilation=case.compilation._replace(constants=constants, options=options))


def test_a_kernel_that_spills_is_noticed():
    case = with_rows(find_case("temporal_attention_kernel", 90), 128)
    assert kernel_resources.measure(case).faults == ("spills",)


def test_a_kernel_without_tensor_cores_is_noticed():
    case = find_case("add_norm_kernel", 90)
    assert not case.multiplies
    assert kernel_resources.measure(case._replace(multiplies=True)).faults == ("no tensor cores",)


@pytest.mark.parametrize("chip", kernel_resources.SHARED_LIMIT)
def test_every_chips_matrix_instructions_are_counted(chip):
    """With 64 rows each chip has one of its own; with fewer, all have that of sm_80."""
    resources = kernel_resources.measure(with_rows(find_case("temporal_attention_kernel", chip), 64, num_warps=4))
    assert 0 < resources.matrix_instructions < resources.instructions
    assert resources.faults == ()
