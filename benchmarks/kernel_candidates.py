"""Other ways to write the kernels, which only a GPU can choose between; the package has none of them.

The patch embedding gets its patches unfolded already, as bytes, with which a processor could begin;
weights are folded beforehand. Rows have 588 pixels and are padded to 592 bytes, a multiple of 16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vllm_videollava.kernels import frame_patch_embed, temporal_attention, temporal_embed_norm

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
    padding = torch.full(
        (len(rows), frame_patch_embed.padded_depth(patch) - rows.shape[1]),
        CENTRE,
        dtype=torch.uint8,
        device=rows.device,
    )
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


def attend(query, key, value, *, num_frames: int, num_heads: int, scale: float, block_rows: int, num_warps: int):
    """Launch the package's kernel for attention over time with other blocks."""
    frames, positions, features = query.shape
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    block_frames = triton.next_power_of_2(num_frames)
    block_rows = max(block_rows, block_frames)
    grid = (triton.cdiv(positions, block_rows // block_frames), num_heads, frames // num_frames)
    temporal_attention._temporal_attention_kernel[grid](
        query,
        key,
        value,
        output,
        positions,
        *(stride for x in (query, key, value, output) for stride in x.stride()[:2]),
        scale,
        OPERAND=temporal_attention.dispatch.operand_type(query.dtype),
        NUM_FRAMES=num_frames,
        HEAD_SIZE=features // num_heads,
        BLOCK_FRAMES=block_frames,
        BLOCK_ROWS=block_rows,
        BLOCK_HEAD=max(16, triton.next_power_of_2(features // num_heads)),
        num_warps=num_warps,
    )
    return output


def embed_norm(states, temporal_embedding, norm_weight, norm_bias, *, eps: float, num_warps: int):
    """Launch the package's kernel for the temporal norm with other numbers of warps."""
    frames, positions, features = states.shape
    residual, normed = torch.empty_like(states), torch.empty_like(states)
    temporal_embed_norm._temporal_embed_norm_kernel[(frames * positions,)](
        states,
        temporal_embedding,
        norm_weight,
        norm_bias,
        residual,
        normed,
        positions,
        temporal_embedding.shape[-2],
        eps,
        FEATURES=features,
        BLOCK_FEATURES=triton.next_power_of_2(features),
        num_warps=num_warps,
    )
    return residual, normed


def add_norm(states: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float):
    """Return `states + added` and its layer norm, all `[F, N, D]`."""
    total, normed = torch.empty_like(states), torch.empty_like(states)
    features = states.shape[-1]
    _add_norm_kernel[(states.numel() // features,)](
        states, added, weight, bias, total, normed, eps, features, triton.next_power_of_2(features), num_warps=1
    )
    return total, normed


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


@triton.jit
def _add_norm_kernel(
    states_ptr,  # [F * N, D], like `added_ptr` and the results
    added_ptr,
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    total_ptr,
    normed_ptr,
    eps,
    FEATURES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * FEATURES
    feature = tl.arange(0, BLOCK_FEATURES)
    mask = feature < FEATURES
    values = tl.load(states_ptr + start + feature, mask=mask, other=0).to(tl.float32)
    values += tl.load(added_ptr + start + feature, mask=mask, other=0).to(tl.float32)
    values = values.to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + start + feature, values, mask=mask)
    values = values.to(tl.float32)
    mean = tl.sum(values, 0) / FEATURES
    distance = tl.where(mask, values - mean, 0)
    inverse = 1 / tl.sqrt(tl.sum(distance * distance, 0) / FEATURES + eps)
    gain = tl.load(weight_ptr + feature, mask=mask, other=0).to(tl.float32)
    bias = tl.load(bias_ptr + feature, mask=mask, other=0).to(tl.float32)
    values = distance * inverse * gain + bias
    tl.store(normed_ptr + start + feature, values.to(normed_ptr.dtype.element_ty), mask=mask)
