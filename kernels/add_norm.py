"""Adds to the residual stream and applies the layer norm that follows, in one pass.

    total = x + added        normed = LayerNorm(total)

x is `[F, N, D]`, frame after frame, clip after clip. What is added is either
`[F, N, D]`, the output of a layer, or `[1, T, D]`, the temporal embedding, with one
row for each frame of a clip. Each program takes one row: it reads the row once and
writes both results from registers.
"""

import torch
import triton
import triton.language as tl

from vllm_videollava.kernels import dispatch, reference
from vllm_videollava.kernels.layer_norm import layer_norm
from vllm_videollava.kernels.shapes import check_clips, check_shape


def add_norm(
    hidden_states: torch.Tensor,
    added: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    *,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add and normalise, with Triton where it takes the tensors.

    Args:
        hidden_states: `[F, N, D]`.
        added: `[F, N, D]`; or `[1, T, D]`, where F is a multiple of T.
        norm_weight, norm_bias: `[D]` each, of the layer norm.
        eps: epsilon of the layer norm.

    Returns:
        The sum and the normalised sum, both `[F, N, D]` in the dtype of
        `hidden_states`.

    Raises:
        ValueError: the frames are not whole clips, or a shape differs from the
            above.
    """
    features = hidden_states.shape[-1]
    if added.shape != hidden_states.shape:
        num_frames = added.shape[1] if added.ndim == 3 else len(hidden_states)
        check_shape("added", added, (1, num_frames, features))
        check_clips(hidden_states, num_frames)
    check_shape("norm_weight", norm_weight, (features,))
    check_shape("norm_bias", norm_bias, (features,))
    add = add_norm_by_triton if dispatch.takes(hidden_states) else reference.add_norm
    return add(hidden_states, added, norm_weight, norm_bias, eps=eps)


def _fake(hidden_states, *_args, **_options):
    total = hidden_states.new_empty(hidden_states.shape)
    return total, torch.empty_like(total)


@dispatch.operator(fake=_fake)
def add_norm_by_triton(
    hidden_states: torch.Tensor,
    added: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    frames, positions, features = hidden_states.shape
    total = torch.empty(hidden_states.shape, dtype=hidden_states.dtype, device=hidden_states.device)
    normed = torch.empty_like(total)
    _add_norm_kernel[(frames * positions,)](
        hidden_states.contiguous(),
        added.contiguous(),
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        total,
        normed,
        positions,
        added.shape[-2],
        eps,
        PER_FRAME=added.shape != hidden_states.shape,
        FEATURES=features,
        BLOCK_FEATURES=triton.next_power_of_2(features),
        num_warps=1,
    )
    return total, normed


@triton.jit
def _add_norm_kernel(
    hidden_states_ptr,  # [F * N, D]
    added_ptr,  # [F * N, D], or [T, D] if PER_FRAME
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    total_ptr,  # [F * N, D]
    normed_ptr,  # [F * N, D]
    positions,
    num_frames,
    eps,
    PER_FRAME: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    row = tl.program_id(0)
    added_row = row // positions % num_frames if PER_FRAME else row
    start = row.to(tl.int64) * FEATURES
    feature = tl.arange(0, BLOCK_FEATURES)
    mask = feature < FEATURES
    values = tl.load(hidden_states_ptr + start + feature, mask=mask, other=0).to(tl.float32)
    values += tl.load(added_ptr + added_row.to(tl.int64) * FEATURES + feature, mask=mask, other=0).to(tl.float32)
    # Normalise the rounded values, which are those that are stored.
    values = values.to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + start + feature, values, mask=mask)

    values = layer_norm(values.to(tl.float32), norm_weight_ptr, norm_bias_ptr, eps, FEATURES, BLOCK_FEATURES)
    tl.store(normed_ptr + start + feature, values.to(normed_ptr.dtype.element_ty), mask=mask)
