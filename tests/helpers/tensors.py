"""Tensors for the kernels, where they live, and how close results have to be."""

import pytest
import torch
from triton import knobs

RUNS_KERNELS = pytest.mark.skipif(
    not (torch.cuda.is_available() or knobs.runtime.interpret),
    reason="no GPU; `make test` runs these under Triton's interpreter, with TRITON_INTERPRET=1",
)

DEVICE = "cuda" if torch.cuda.is_available() and not knobs.runtime.interpret else "cpu"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Largest error of an element around 1, from the roundings of each type.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# norm(result - expected) / norm(expected); the interpreter cuts bfloat16 off where a GPU rounds.
RELATIVE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def normal(random: torch.Generator, *shape: int, dtype: torch.dtype, scale: float = 1, mean: float = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=random) * scale + mean).to(dtype).to(DEVICE)


def assert_close(result: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == dtype
    assert result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert (result.double() - expected).norm() <= RELATIVE[dtype] * expected.norm()


def random_frames(random: torch.Generator, frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (frames, 3, height, width), generator=random, dtype=torch.uint8).to(DEVICE)


def embedding_weights(random: torch.Generator, features: int, positions: int, dtype: torch.dtype, patch: int = 14):
    return (
        normal(random, features, 3, patch, patch, dtype=dtype, scale=0.05),
        normal(random, features, dtype=dtype),
        normal(random, positions, features, dtype=dtype, mean=1),
        normal(random, features, dtype=dtype, scale=0.1, mean=1),
        normal(random, features, dtype=dtype, scale=0.1),
    )
