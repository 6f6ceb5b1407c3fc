"""The layer norm of one row, as a step of kernels that have the row in registers."""

import triton
import triton.language as tl


@triton.jit
def layer_norm(
    values,  # float32 [BLOCK_FEATURES], of which the first FEATURES count
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    eps,
    FEATURES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    feature = tl.arange(0, BLOCK_FEATURES)
    mask = feature < FEATURES
    mean = tl.sum(values, 0) / FEATURES
    distance = tl.where(mask, values - mean, 0)
    inverse = 1 / tl.sqrt(tl.sum(distance * distance, 0) / FEATURES + eps)
    gain = tl.load(norm_weight_ptr + feature, mask=mask, other=0).to(tl.float32)
    bias = tl.load(norm_bias_ptr + feature, mask=mask, other=0).to(tl.float32)
    return distance * inverse * gain + bias
