"""Other ways to write the kernels, which only a GPU can choose between; the package has none of them.

The patch embedding gets its patches unfolded already, as bytes, with which a processor could begin;
weights are folded beforehand. Rows have 588 pixels and are padded to 592 bytes, a multiple of 16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vllm_videollava.kernels import frame_patch_embed

CENTRE = frame_patch_embed.CENTRE.value


class Folded(NamedTuple):
    """The patch embedding's weights, with the normalisation of pixels in the matrix, `[D, K]`, and the bias, `[D]`."""

    matrix: torch.Tensor
    bias: torch.Tensor
    class_embedding: torch.Tensor
    position_embedding: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    eps: float
    dtype: torch.dtype


def fold(weight, *others, image_mean: Sequence[float], image_std: Sequence[float], eps: float) -> Folded:
    """Fold the normalisation of pixels into the weight; the matrix is float16, whatever the weight is."""
    matrix, bias = frame_patch_embed._fold(weight, image_mean, image_std)
    return Folded(matrix.half(), bias, *others, eps, weight.dtype)


def unfold_on_cpu(frames: torch.Tensor, patch: int) -> torch.Tensor:
    """Cut frames, uint8 `[F, 3, H, W]`, into rows, padded, uint8 `[F * N, K]`, as a processor could."""
    rows = frames.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    missing = frame_patch_embed.padded_depth(patch) - rows.shape[1]
    padding = torch.full((len(rows), missing), CENTRE, dtype=torch.uint8, device=rows.device)
    return torch.cat([rows, padding], 1)


def by_bytes_and_cublas(rows: torch.Tensor, folded: Folded) -> torch.Tensor:
    """Take unfolded bytes, multiply by cuBLAS, normalise by the package's kernel."""
    return frame_patch_embed._normalise((rows.half() - CENTRE) @ folded.matrix.T, *folded[1:])


def by_bytes(rows: torch.Tensor, folded: Folded, tile: Sequence[int]) -> torch.Tensor:
    """Take unfolded bytes, multiply them by Triton, normalise by the package's kernel."""
    block_rows, block_features, block_depth, num_warps, num_stages = tile
    features, depth = folded.matrix.shape
    product = torch.empty(len(rows), features, dtype=torch.half, device=rows.device)
    grid = (triton.cdiv(len(rows), block_rows) * triton.cdiv(features, block_features),)
    _multiply_bytes_kernel[grid](
        rows, folded.matrix, product, len(rows), features, depth, CENTRE, block_rows, block_features, block_depth,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return frame_patch_embed._normalise(product, *folded[1:])


@triton.jit
def _multiply_bytes_kernel(
    rows_ptr,  # [M, DEPTH]
    matrix_ptr,  # [D, DEPTH]
    product_ptr,  # [M, D]
    num_rows,
    FEATURES: tl.constexpr,
    DEPTH: tl.constexpr,
    CENTRE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    blocks_across: tl.constexpr = (FEATURES + BLOCK_FEATURES - 1) // BLOCK_FEATURES
    row = tl.program_id(0) // blocks_across * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    feature = tl.program_id(0) % blocks_across * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    row_start = rows_ptr + tl.minimum(row, num_rows - 1).to(tl.int64) * DEPTH
    matrix_row = matrix_ptr + tl.minimum(feature, FEATURES - 1) * DEPTH
    tile = tl.zeros([BLOCK_ROWS, BLOCK_FEATURES], tl.float32)
    for start in range(0, DEPTH, BLOCK_DEPTH):
        k = start + tl.arange(0, BLOCK_DEPTH)
        pixels = tl.load(row_start[:, None] + k[None, :], mask=(k < DEPTH)[None, :], other=0)
        values = tl.load(matrix_row[None, :] + k[:, None], mask=(k < DEPTH)[:, None], other=0)
        tile = tl.dot(pixels.to(tl.float16) - CENTRE, values, tile)
    mask = (row < num_rows)[:, None] & (feature < FEATURES)[None, :]
    tl.store(product_ptr + row.to(tl.int64)[:, None] * FEATURES + feature[None, :], tile.to(tl.float16), mask=mask)
