"""Attention over the frames of a clip at each position, computed directly from the QKV projection.

    y[t] = sum over t' of softmax(scale * q[t] . k[t'])[t'] * v[t']

q, k, v and y are `[F, N, D]`, frame after frame, clip after clip; t and t' are
frames of the same clip at the same position and head. Each program takes one
head of one clip at several positions, gathers their frames by strides, and
multiplies them all as one matrix, because 8 frames alone are too few for the
tensor cores. Only the blocks on the diagonal are used: the pairs of frames at
the same position. Neither transposed copies nor scores are ever stored. Infinity
and NaN spread to the other positions of a program.
"""

import torch
import triton
import triton.language as tl

from vllm_videollava.kernels import dispatch, reference
from vllm_videollava.kernels.shapes import check_clips, check_shape

# The number of rows (frames times positions) of a program, unless a clip has more frames. With one warp, no sum over a
# row of scores waits for another warp.
BLOCK_ROWS, NUM_WARPS = 16, 1


def temporal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, num_frames: int, num_heads: int, scale: float
) -> torch.Tensor:
    """Attend over time, with Triton where it takes the tensors.

    Args:
        query, key, value: `[F, N, D]` each; F is a multiple of `num_frames`,
            and D of `num_heads`. All may be strided views, such as chunks of
            one projection.
        num_frames: number of frames in each clip.
        num_heads: number of heads that D is split into.
        scale: factor that multiplies the scores before the softmax.

    Returns:
        `[F, N, D]`, contiguous, in the dtype of `query`.

    Raises:
        ValueError: the frames are not whole clips, the features are not whole
            heads, or the three shapes differ.
    """
    check_clips(query, num_frames)
    check_shape("key", key, query.shape)
    check_shape("value", value, query.shape)
    if query.shape[-1] % num_heads:
        raise ValueError(f"{query.shape[-1]} features cannot be split into {num_heads} heads.")
    attend = temporal_attention_by_triton if dispatch.takes(query) else reference.temporal_attention
    return attend(query, key, value, num_frames=num_frames, num_heads=num_heads, scale=scale)


def _fake(query, *_args, **_options):
    return query.new_empty(query.shape)


@dispatch.operator(fake=_fake)
def temporal_attention_by_triton(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_frames: int, num_heads: int, scale: float
) -> torch.Tensor:
    block_rows = max(BLOCK_ROWS, triton.next_power_of_2(num_frames))
    return launch_attention(
        query,
        key,
        value,
        num_frames=num_frames,
        num_heads=num_heads,
        scale=scale,
        block_rows=block_rows,
        num_warps=NUM_WARPS if block_rows <= 32 else 4,
    )


def launch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    num_frames: int,
    num_heads: int,
    scale: float,
    block_rows: int,
    num_warps: int,
) -> torch.Tensor:
    """Launch the kernel with programs of `block_rows` rows, at least as many as a clip has frames."""
    frames, positions, features = query.shape
    # Tensors are copied only if their features are not contiguous.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    block_frames = triton.next_power_of_2(num_frames)
    head_size = features // num_heads
    grid = (triton.cdiv(positions, block_rows // block_frames), num_heads, frames // num_frames)
    _temporal_attention_kernel[grid](
        query,
        key,
        value,
        output,
        positions,
        *(stride for x in (query, key, value, output) for stride in x.stride()[:2]),
        scale,
        OPERAND=dispatch.operand_type(query.dtype),
        NUM_FRAMES=num_frames,
        HEAD_SIZE=head_size,
        BLOCK_FRAMES=block_frames,
        BLOCK_ROWS=block_rows,
        BLOCK_HEAD=max(16, triton.next_power_of_2(head_size)),
        num_warps=num_warps,
    )
    return output


@triton.jit
def _temporal_attention_kernel(
    query_ptr,  # [F, N, D]
    key_ptr,  # [F, N, D]
    value_ptr,  # [F, N, D]
    output_ptr,  # [F, N, D]
    positions,
    stride_query_frame,
    stride_query_position,
    stride_key_frame,
    stride_key_position,
    stride_value_frame,
    stride_value_position,
    stride_output_frame,
    stride_output_position,
    scale,
    OPERAND: tl.constexpr,
    NUM_FRAMES: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_FRAMES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
):
    row = tl.arange(0, BLOCK_ROWS)
    position = tl.program_id(0) * (BLOCK_ROWS // BLOCK_FRAMES) + row // BLOCK_FRAMES
    is_row = (row % BLOCK_FRAMES < NUM_FRAMES) & (position < positions)
    frame = (tl.program_id(2) * NUM_FRAMES + row % BLOCK_FRAMES).to(tl.int64)
    feature = tl.arange(0, BLOCK_HEAD)
    mask = is_row[:, None] & (feature < HEAD_SIZE)[None, :]
    head = (tl.program_id(1) * HEAD_SIZE + feature)[None, :]

    query_row = query_ptr + frame * stride_query_frame + position * stride_query_position
    key_row = key_ptr + frame * stride_key_frame + position * stride_key_position
    value_row = value_ptr + frame * stride_value_frame + position * stride_value_position
    queries = tl.load(query_row[:, None] + head, mask=mask, other=0).to(OPERAND)
    keys = tl.load(key_row[:, None] + head, mask=mask, other=0).to(OPERAND)
    values = tl.load(value_row[:, None] + head, mask=mask, other=0).to(OPERAND)

    # Three tf32 products give the precision of float32; other types ignore the option.
    scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3") * scale
    is_pair = (position[:, None] == position[None, :]) & (row % BLOCK_FRAMES < NUM_FRAMES)[None, :]
    scores = tl.where(is_pair, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    attended = tl.dot(weights.to(output_ptr.dtype.element_ty).to(OPERAND), values, input_precision="tf32x3")

    output_row = output_ptr + frame * stride_output_frame + position * stride_output_position
    tl.store(output_row[:, None] + head, attended.to(output_ptr.dtype.element_ty), mask=mask)
