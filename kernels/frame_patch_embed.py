"""Turns frames into patch embeddings, normalised before and after.

    y = LayerNorm(concat(CLS, conv((x / 255 - mean) / std)) + positions)

x is uint8 `[F, 3, H, W]`; y is `[F, N, D]` with N = 1 + H / P * W / P positions,
CLS and the patches.

The convolution is a product of matrices: one kernel unfolds the patches into rows
of 3 * P * P pixels, cuBLAS multiplies, and one kernel adds CLS, bias and positions
and normalises. A third, small kernel folds the normalisation of pixels into the
weight and a bias. So the product takes whole numbers, pixels minus 128, which
float16 holds exactly. In bfloat16 models only the weight is rounded, to float16,
which has more bits. The bias is computed from the rounded weight, in float32.
No float image is stored. A product in float16 holds a sum of absolute weights, for
one feature, of up to 2,000, for which CLIP's are far too small.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from vllm_videollava.kernels import dispatch, reference
from vllm_videollava.kernels.layer_norm import layer_norm
from vllm_videollava.kernels.shapes import check_shape

# Rows are padded to a multiple of 32 bytes, which cuBLAS prefers.
ALIGNMENT = 16
# The middle of the pixels' range, which is subtracted from pixels.
CENTRE = tl.constexpr(128)
# Keeps folded weights away from float16's subnormal numbers.
MAGNIFIED = tl.constexpr(16)
UNFOLD_BLOCK = 1024


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
    """Embed frames, with Triton where it takes them.

    Args:
        frames: uint8 `[F, 3, H, W]` in any memory layout, H and W multiples of P.
        weight: `[D, 3, P, P]`, the weight of the patch convolution, which has
            no bias; float32, float16 or bfloat16, like all tensors that follow.
        class_embedding: `[D]`.
        position_embedding: `[N, D]`.
        norm_weight, norm_bias: `[D]` each, of the layer norm before the encoder.
        image_mean, image_std: one value per channel, for pixels from 0 to 1.
        eps: epsilon of the layer norm.

    Returns:
        `[F, N, D]` in the dtype of `weight`.

    Raises:
        ValueError: frames are not uint8 `[F, 3, H, W]`, or do not fit the
            patches or the positions; or a shape of the weights differs from
            the above.
    """
    patches = _check_frames(frames, weight.shape[-1])
    features, patch = len(weight), weight.shape[-1]
    check_shape("weight", weight, (features, 3, patch, patch))
    check_shape("position_embedding", position_embedding, (1 + patches, features))
    for name, vector in (("class_embedding", class_embedding), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_shape(name, vector, (features,))
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


def _check_frames(frames: torch.Tensor, patch: int) -> int:
    """Check frames, and return how many patches each has."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"Frames must be uint8 [F, 3, H, W]; these are {frames.dtype} {list(frames.shape)}.")
    height, width = frames.shape[2:]
    if height % patch or width % patch:
        raise ValueError(f"Frames of {height}x{width} pixels cannot be cut into patches of {patch}x{patch}.")
    return height // patch * (width // patch)


def _fake(frames, weight, class_embedding, position_embedding, *_args, **_options):
    # `len` would fix the number of frames, which torch.compile may leave open.
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
    # Folded at every call, because weights may be replaced at any time; it takes a few microseconds.
    matrix, bias = _fold(weight, image_mean, image_std)
    product = _unfold(frames, weight.shape[-1], matrix.shape[1], matrix.dtype) @ matrix.T
    return _normalise(product, bias, class_embedding, position_embedding, norm_weight, norm_bias, eps, weight.dtype)


def padded_depth(patch: int) -> int:
    """Return the length of a row of pixels: those of a patch of `patch` times `patch` pixels, padded."""
    return triton.cdiv(3 * patch * patch, ALIGNMENT) * ALIGNMENT


def _fold(
    weight: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold the normalisation of pixels into the weight `[D, 3, P, P]`.

    Returns:
        The matrix `[D, K]`, multiplied by `MAGNIFIED`, where K is 3 * P * P
        plus padding with zeros, and the bias, float32 `[D]`.
    """
    features, patch = len(weight), weight.shape[-1]
    depth = padded_depth(patch)
    dtype = torch.float32 if weight.dtype == torch.float32 else torch.float16
    matrix = torch.empty(features, depth, dtype=dtype, device=weight.device)
    bias = torch.empty(features, dtype=torch.float32, device=weight.device)
    _fold_kernel[(features,)](
        weight.contiguous(),
        matrix,
        bias,
        *(1 / (255 * std) for std in image_std),
        *(255 * mean for mean in image_mean),
        PATCH=patch,
        DEPTH=depth,
        BLOCK_DEPTH=triton.next_power_of_2(depth),
        num_warps=4,
    )
    return matrix, bias


def _unfold(frames: torch.Tensor, patch: int, depth: int, dtype: torch.dtype) -> torch.Tensor:
    """Cut frames into patches: rows `[F * (N - 1), K]` of pixels minus `CENTRE`, padded with zeros."""
    across, down = frames.shape[3] // patch, frames.shape[2] // patch
    rows = torch.empty(len(frames) * down * across, depth, dtype=dtype, device=frames.device)
    _unfold_kernel[(triton.cdiv(rows.numel(), UNFOLD_BLOCK),)](
        frames,
        rows,
        rows.numel(),
        down * across,
        across,
        *frames.stride(),
        PATCH=patch,
        DEPTH=depth,
        BLOCK=UNFOLD_BLOCK,
        num_warps=4,
    )
    return rows


def _normalise(
    product: torch.Tensor,
    bias: torch.Tensor,
    class_embedding: torch.Tensor,
    position_embedding: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Divide the product `[F * (N - 1), D]` by `MAGNIFIED`; add CLS, bias and positions; normalise to `[F, N, D]`."""
    tokens, features = position_embedding.shape
    frames = product.shape[0] // (tokens - 1)
    output = torch.empty(frames, tokens, features, dtype=dtype, device=product.device)
    _normalise_kernel[(frames * tokens,)](
        product,
        bias,
        class_embedding.contiguous(),
        position_embedding.contiguous(),
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        output,
        tokens,
        eps,
        FEATURES=features,
        BLOCK_FEATURES=triton.next_power_of_2(features),
        num_warps=1,
    )
    return output


@triton.jit
def _fold_kernel(
    weight_ptr,  # [D, 3 * P * P]
    matrix_ptr,  # [D, DEPTH]
    bias_ptr,  # [D]
    scale_red,
    scale_green,
    scale_blue,
    mean_red,
    mean_green,
    mean_blue,
    PATCH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    PIXELS: tl.constexpr = 3 * PATCH * PATCH
    feature = tl.program_id(0)
    k = tl.arange(0, BLOCK_DEPTH)
    channel = k // (PATCH * PATCH)
    scale = tl.where(channel == 0, scale_red, tl.where(channel == 1, scale_green, scale_blue))
    mean = tl.where(channel == 0, mean_red, tl.where(channel == 1, mean_green, mean_blue))
    weights = tl.load(weight_ptr + feature * PIXELS + k, mask=k < PIXELS, other=0).to(tl.float32)
    folded = (weights * scale * MAGNIFIED).to(matrix_ptr.dtype.element_ty)
    tl.store(matrix_ptr + feature * DEPTH + k, folded, mask=k < DEPTH)
    tl.store(bias_ptr + feature, tl.sum(folded.to(tl.float32) * (CENTRE - mean), 0) / MAGNIFIED)


@triton.jit
def _unfold_kernel(
    frames_ptr,  # [F, 3, H, W]
    rows_ptr,  # [F * (N - 1), DEPTH]
    size,
    patches,
    across,
    stride_frame,
    stride_channel,
    stride_y,
    stride_x,
    PATCH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = (index // DEPTH).to(tl.int32)
    k = (index % DEPTH).to(tl.int32)
    channel = (k // (PATCH * PATCH)).to(tl.int64)
    patch = row % patches
    corner = (row // patches).to(tl.int64) * stride_frame
    corner += (patch // across) * (PATCH * stride_y) + (patch % across) * (PATCH * stride_x)
    offset = channel * stride_channel + k % (PATCH * PATCH) // PATCH * stride_y + k % PATCH * stride_x
    is_pixel = (index < size) & (k < 3 * PATCH * PATCH)
    pixels = tl.load(frames_ptr + corner + offset, mask=is_pixel, other=CENTRE)
    tl.store(rows_ptr + index, pixels.to(rows_ptr.dtype.element_ty) - CENTRE, mask=index < size)


@triton.jit
def _normalise_kernel(
    product_ptr,  # [F * (N - 1), D]
    bias_ptr,  # [D]
    class_embedding_ptr,  # [D]
    position_embedding_ptr,  # [N, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    output_ptr,  # [F * N, D]
    tokens,
    eps,
    FEATURES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    row = tl.program_id(0)
    frame, token = row // tokens, row % tokens
    feature = tl.arange(0, BLOCK_FEATURES)
    mask = feature < FEATURES
    values = tl.load(position_embedding_ptr + token * FEATURES + feature, mask=mask, other=0).to(tl.float32)
    if token == 0:
        values += tl.load(class_embedding_ptr + feature, mask=mask, other=0).to(tl.float32)
    else:
        patch = frame.to(tl.int64) * (tokens - 1) + token - 1
        product = tl.load(product_ptr + patch * FEATURES + feature, mask=mask, other=0).to(tl.float32)
        values += product / MAGNIFIED + tl.load(bias_ptr + feature, mask=mask, other=0)
    values = layer_norm(values, norm_weight_ptr, norm_bias_ptr, eps, FEATURES, BLOCK_FEATURES)
    output = output_ptr + row.to(tl.int64) * FEATURES + feature
    tl.store(output, values.to(output_ptr.dtype.element_ty), mask=mask)
