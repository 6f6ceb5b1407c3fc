"""Adds the temporal embedding and applies the layer norm before attention over time, in one pass.

    residual = x + embedding[frame]        normed = LayerNorm(residual)

x is `[F, N, D]`, frame after frame, clip after clip. Each program takes one row:
it reads the row once and writes both results from registers.
"""

import torch
import triton
import triton.language as tl

from vllm_videollava.kernels import dispatch, reference
from vllm_videollava.kernels.shapes import check_clips, check_shape


def temporal_embed_norm(
    hidden_states: torch.Tensor,
    temporal_embedding: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    *,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the temporal embedding and normalise, with Triton where it takes the tensors.

    Args:
        hidden_states: `[F, N, D]`; F is a multiple of T.
        temporal_embedding: `[1, T, D]`, one row for each frame of a clip.
        norm_weight, norm_bias: `[D]` each, of the layer norm.
        eps: epsilon of the layer norm.

    Returns:
        The residual stream and the input of attention, both `[F, N, D]` in the
        dtype of `hidden_states`.

    Raises:
        ValueError: the frames are not whole clips, or a shape differs from the
            above.
    """
    num_frames, features = temporal_embedding.shape[-2], hidden_states.shape[-1]
    check_clips(hidden_states, num_frames)
    check_shape("temporal_embedding", temporal_embedding, (1, num_frames, features))
    check_shape("norm_weight", norm_weight, (features,))
    check_shape("norm_bias", norm_bias, (features,))
    embed = temporal_embed_norm_by_triton if dispatch.takes(hidden_states) else reference.temporal_embed_norm
    return embed(hidden_states, temporal_embedding, norm_weight, norm_bias, eps=eps)


def _fake(hidden_states, *_args, **_options):
    residual = hidden_states.new_empty(hidden_states.shape)
    return residual, torch.empty_like(residual)


@dispatch.operator(fake=_fake)
def temporal_embed_norm_by_triton(
    hidden_states: torch.Tensor,
    temporal_embedding: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    frames, positions, features = hidden_states.shape
    residual = torch.empty(hidden_states.shape, dtype=hidden_states.dtype, device=hidden_states.device)
    normed = torch.empty_like(residual)
    _temporal_embed_norm_kernel[(frames * positions,)](
        hidden_states.contiguous(),
        temporal_embedding.contiguous(),
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        residual,
        normed,
        positions,
        temporal_embedding.shape[-2],
        eps,
        FEATURES=features,
        BLOCK_FEATURES=triton.next_power_of_2(features),
    )
    return residual, normed


@triton.jit
def _temporal_embed_norm_kernel(
    hidden_states_ptr,  # [F * N, D]
    temporal_embedding_ptr,  # [T, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    residual_ptr,  # [F * N, D]
    normed_ptr,  # [F * N, D]
    positions,
    num_frames,
    eps,
    FEATURES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    row = tl.program_id(0)
    frame = row // positions % num_frames
    start = row.to(tl.int64) * FEATURES
    feature = tl.arange(0, BLOCK_FEATURES)
    mask = feature < FEATURES
    values = tl.load(hidden_states_ptr + start + feature, mask=mask, other=0).to(tl.float32)
    values += tl.load(temporal_embedding_ptr + frame * FEATURES + feature, mask=mask, other=0).to(tl.float32)
    # Normalise the rounded values, which are those that are stored.
    values = values.to(residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + start + feature, values, mask=mask)

    values = values.to(tl.float32)
    mean = tl.sum(values, 0) / FEATURES
    distance = tl.where(mask, values - mean, 0)
    inverse = 1 / tl.sqrt(tl.sum(distance * distance, 0) / FEATURES + eps)
    gain = tl.load(norm_weight_ptr + feature, mask=mask, other=0).to(tl.float32)
    bias = tl.load(norm_bias_ptr + feature, mask=mask, other=0).to(tl.float32)
    values = distance * inverse * gain + bias
    tl.store(normed_ptr + start + feature, values.to(normed_ptr.dtype.element_ty), mask=mask)
