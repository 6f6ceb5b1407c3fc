"""What benchmarks/kernel_speed.py compares does compute the same, in small shapes."""

import pytest
import torch

from benchmarks import kernel_speed
from helpers.tensors import DEVICE, RUNS_KERNELS

pytestmark = RUNS_KERNELS

SMALL = kernel_speed.Shape(features=64, heads=2, size=28, layers=2)


@pytest.mark.parametrize("make", [make for make, _ in kernel_speed.CASES if make is not kernel_speed.product])
def test_the_ways_agree(make):
    with torch.compiler.set_stance("force_eager"):
        case = make(16, SMALL, torch.float32, DEVICE)
        assert len(case.ways) >= 2
        for way, distance in kernel_speed.disagreement(case, case.make_input()).items():
            # Those that multiply in float16 say so in the README of the benchmarks.
            assert distance < (1e-3 if way.endswith(", norm") else 1e-5), way


def test_a_way_that_computes_something_else_is_noticed():
    with torch.compiler.set_stance("force_eager"):
        case = kernel_speed.over_time(16, SMALL, torch.float32, DEVICE)
        ours = case.ways["this package"]
        ways = {"this package": ours, "wrong": lambda states: ours(states.roll(1, 0)), "fails": lambda states: 1 / 0}
        distances = kernel_speed.disagreement(case._replace(ways=ways), case.make_input())
        assert distances["this package"] == 0
        assert distances["wrong"] > kernel_speed.LARGEST_DISAGREEMENT
        assert distances["fails"] == float("inf")
