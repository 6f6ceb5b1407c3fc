"""What benchmarks/kernel_speed.py compares does compute the same, in small shapes."""

import sys
from pathlib import Path

import pytest
import torch
from test_kernels import DEVICE, pytestmark  # noqa: F401

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import kernel_speed

SMALL = kernel_speed.Shape(features=64, heads=2, size=28, layers=2)


@pytest.mark.parametrize("make", kernel_speed.CASES)
def test_the_ways_agree(make):
    with torch.compiler.set_stance("force_eager"):
        case = make(16, SMALL, torch.float32, DEVICE, 2)
        assert len(case.ways) >= 3
        assert kernel_speed.disagreement(case) < 1e-5


def test_a_way_that_computes_something_else_is_noticed():
    with torch.compiler.set_stance("force_eager"):
        case = kernel_speed.over_time(16, SMALL, torch.float32, DEVICE, 1)
        ways = {**case.ways, "wrong": lambda states: case.ways["this package"](states.roll(1, 0))}
        assert kernel_speed.disagreement(case._replace(ways=ways)) > 0.02
