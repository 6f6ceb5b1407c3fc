"""Frames to patch embeddings, normalised before and after, in one pass.

    y = LayerNorm(concat(CLS, conv((x / 255 - mean) / std)) + positions)

x is uint8 `[F, 3, H, W]`; y is `[F, N, D]` with N = 1 + H / P * W / P positions,
CLS and the patches.

Each program computes a block of rows of y, of any frames, with all features. It
makes its tile of normalised pixels, `[rows, 3 * P * P]`, in registers; their bytes
are in the cache after the first use. The convolution is the product of that tile
and the weight. Neither the float image nor the unfolded patches are ever stored.
A row can be normalised only when all of it is known. Until then it waits in y
itself, in the cache, because 1,024 features of as many rows as the tensor cores
want do not fit into a multiprocessor's registers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vllm_videollava.kernels import dispatch, reference


class Blocks(NamedTuple):
    """Sizes of a program's tiles, and how it is compiled."""

    rows: int
    features: int
    depth: int
    num_warps: int
    num_stages: int


# From the most rows to the fewest.
BLOCKS = {
    torch.bfloat16: (
        Blocks(128, 128, 32, 8, 4),
        Blocks(64, 256, 32, 8, 4),
        Blocks(32, 128, 64, 4, 3),
        Blocks(16, 256, 64, 8, 3),
    ),
    torch.float32: (Blocks(32, 64, 32, 4, 3), Blocks(16, 64, 32, 4, 3)),
}
BLOCKS[torch.float16] = BLOCKS[torch.bfloat16]


def frame_patch_embed(
    frames: torch.Tensor,
    weight: torch.Tensor,
    class_embedding: torch.Tensor,
    position_embedding: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    *,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    eps: float,
) -> torch.Tensor:
    """Embed frames, by Triton where it takes them.

    Args:
        frames: uint8 `[F, 3, H, W]` in any memory layout, H and W multiples of P.
        weight: `[D, 3, P, P]` of the patch convolution, which has no bias;
            float32, float16 or bfloat16, like all tensors that follow.
        class_embedding: `[D]`.
        position_embedding: `[N, D]`.
        norm_weight: `[D]`, like `norm_bias`, of the layer norm before the encoder.
        image_mean: for each channel, like `image_std`, of pixels in 0..1.
        eps: of the layer norm.

    Returns:
        `[F, N, D]` in the dtype of `weight`.

    Raises:
        ValueError: frames are not uint8 `[F, 3, H, W]`, or do not fit the
            patches or the positions.
    """
    _check(frames, weight, position_embedding)
    embed = frame_patch_embed_by_triton if dispatch.takes(frames) else reference.frame_patch_embed
    return embed(
        frames,
        weight,
        class_embedding,
        position_embedding,
        norm_weight,
        norm_bias,
        image_mean=image_mean,
        image_std=image_std,
        eps=eps,
    )


def _check(frames: torch.Tensor, weight: torch.Tensor, position_embedding: torch.Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"Frames must be uint8 [F, 3, H, W]; these are {frames.dtype} {list(frames.shape)}.")
    patch, (height, width) = weight.shape[-1], frames.shape[2:]
    if height % patch or width % patch:
        raise ValueError(f"Frames of {height}x{width} pixels cannot be cut into patches of {patch}x{patch}.")
    patches = height // patch * (width // patch)
    if len(position_embedding) != 1 + patches:
        raise ValueError(f"Frames of {patches} patches need {1 + patches} positions, not {len(position_embedding)}.")


def choose_blocks(num_rows: int, dtype: torch.dtype, multiprocessors: int) -> Blocks:
    """Choose the largest blocks that still give every multiprocessor a program; they read the weight least often."""
    fitting = (blocks for blocks in BLOCKS[dtype] if triton.cdiv(num_rows, blocks.rows) >= multiprocessors)
    return next(fitting, BLOCKS[dtype][-1])


def _fake(frames, weight, class_embedding, position_embedding, *_args, **_options):
    # `len` would fix the number of frames, which torch.compile may keep open.
    return frames.new_empty((frames.shape[0], *position_embedding.shape), dtype=weight.dtype)


@dispatch.operator(fake=_fake)
def frame_patch_embed_by_triton(
    frames: torch.Tensor,
    weight: torch.Tensor,
    class_embedding: torch.Tensor,
    position_embedding: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    eps: float,
) -> torch.Tensor:
    tokens, features = position_embedding.shape
    num_rows, patch = len(frames) * tokens, weight.shape[-1]
    blocks = choose_blocks(num_rows, weight.dtype, dispatch.multiprocessors(frames.device))
    output = torch.empty(len(frames), tokens, features, dtype=weight.dtype, device=frames.device)
    _frame_patch_embed_kernel[(triton.cdiv(num_rows, blocks.rows),)](
        frames,
        weight.contiguous(),
        class_embedding.contiguous(),
        position_embedding.contiguous(),
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        output,
        num_rows,
        tokens,
        frames.shape[3] // patch,
        *frames.stride(),
        *(1 / (255 * std) for std in image_std),
        *(mean / std for mean, std in zip(image_mean, image_std, strict=True)),
        eps,
        OPERAND=dispatch.operand_type(weight.dtype),
        FEATURES=features,
        PATCH=patch,
        BLOCK_ROWS=blocks.rows,
        BLOCK_FEATURES=blocks.features,
        BLOCK_DEPTH=blocks.depth,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    return output


# Otherwise Triton compiles anew for numbers with other divisors, while a server runs.
@triton.jit(do_not_specialize=["num_rows"])
def _frame_patch_embed_kernel(
    frames_ptr,  # [F, 3, H, W]
    weight_ptr,  # [D, 3 * P * P]
    class_embedding_ptr,  # [D]
    position_embedding_ptr,  # [N, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    output_ptr,  # [F * N, D]
    num_rows,
    tokens,
    patches_across,
    stride_frame,
    stride_channel,
    stride_y,
    stride_x,
    scale_red,
    scale_green,
    scale_blue,
    shift_red,
    shift_green,
    shift_blue,
    eps,
    OPERAND: tl.constexpr,
    FEATURES: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    DEPTH: tl.constexpr = 3 * PATCH * PATCH
    # The second pass is limited by memory; a narrow tile saves registers.
    NORM_FEATURES: tl.constexpr = 64
    dtype = output_ptr.dtype.element_ty

    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < num_rows
    output_row = output_ptr + row.to(tl.int64) * FEATURES
    # Rows past the end read the last row again, so that pixels need no mask.
    token = tl.minimum(row, num_rows - 1) % tokens
    frame = tl.minimum(row, num_rows - 1) // tokens
    is_class = token == 0
    patch = tl.maximum(token - 1, 0)
    corner = frames_ptr + frame.to(tl.int64) * stride_frame
    corner += (patch // patches_across) * (PATCH * stride_y) + (patch % patches_across) * (PATCH * stride_x)

    mean = tl.zeros([BLOCK_ROWS], tl.float32)
    squares = tl.zeros([BLOCK_ROWS], tl.float32)  # of the distances from the mean
    for start in range(0, FEATURES, BLOCK_FEATURES):
        feature = start + tl.arange(0, BLOCK_FEATURES)
        is_feature = feature < FEATURES
        position = position_embedding_ptr + token[:, None] * FEATURES + feature[None, :]
        tile = tl.load(position, mask=is_feature[None, :], other=0).to(tl.float32)
        class_tile = tl.load(class_embedding_ptr + feature, mask=is_feature, other=0).to(tl.float32)
        tile += tl.where(is_class[:, None], class_tile[None, :], 0)
        weight_row = weight_ptr + tl.minimum(feature, FEATURES - 1) * DEPTH
        for k in range(0, DEPTH, BLOCK_DEPTH):
            index = k + tl.arange(0, BLOCK_DEPTH)
            channel = tl.minimum(index // (PATCH * PATCH), 2)
            y = index % (PATCH * PATCH) // PATCH
            x = index % PATCH
            offset = channel * stride_channel + y * stride_y + x * stride_x
            scale = tl.where(channel == 0, scale_red, tl.where(channel == 1, scale_green, scale_blue))
            shift = tl.where(channel == 0, shift_red, tl.where(channel == 1, shift_green, shift_blue))
            pixels = tl.load(corner[:, None] + offset[None, :]).to(tl.float32) * scale[None, :] - shift[None, :]
            pixels = tl.where(is_class[:, None], 0.0, pixels).to(dtype)
            weights = tl.load(weight_row[None, :] + index[:, None], mask=index[:, None] < DEPTH, other=0)
            # Three products of tf32 give float32; other types ignore it.
            tile = tl.dot(pixels.to(OPERAND), weights.to(OPERAND), tile, input_precision="tf32x3")
        tl.store(output_row[:, None] + feature[None, :], tile.to(dtype), mask=is_row[:, None] & is_feature[None, :])

        # Combine mean and variance with those of the features so far (Chan, Golub, LeVeque, 1979).
        count = tl.minimum(FEATURES - start, BLOCK_FEATURES)
        tile_mean = tl.sum(tl.where(is_feature[None, :], tile, 0), 1) / count
        distance = tl.where(is_feature[None, :], tile - tile_mean[:, None], 0)
        step = tile_mean - mean
        mean += step * count / (start + count)
        squares += tl.sum(distance * distance, 1) + step * step * start * count / (start + count)

    # Next, threads read what other threads of this program have stored.
    tl.debug_barrier()
    inverse = 1 / tl.sqrt(squares / FEATURES + eps)
    for start in range(0, FEATURES, NORM_FEATURES):
        feature = start + tl.arange(0, NORM_FEATURES)
        mask = is_row[:, None] & (feature < FEATURES)[None, :]
        gain = tl.load(norm_weight_ptr + feature, mask=feature < FEATURES, other=0).to(tl.float32)
        bias = tl.load(norm_bias_ptr + feature, mask=feature < FEATURES, other=0).to(tl.float32)
        tile = tl.load(output_row[:, None] + feature[None, :], mask=mask, other=0).to(tl.float32)
        tile = (tile - mean[:, None]) * inverse[:, None] * gain[None, :] + bias[None, :]
        tl.store(output_row[:, None] + feature[None, :], tile.to(dtype), mask=mask)
