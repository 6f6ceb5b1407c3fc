"""Frames to normalised patch embeddings.

    y = LayerNorm(concat(CLS, conv((x / 255 - mean) / std)) + positions)

x is uint8 `[F, 3, H, W]`; y is `[F, 1 + N, D]` with N = H / P * W / P patches.
"""

import torch
import torch.nn.functional as F


def frame_patch_embed(
    frames: torch.Tensor,
    weight: torch.Tensor,
    class_embedding: torch.Tensor,
    position_embedding: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    *,
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
    eps: float,
) -> torch.Tensor:
    """Embed frames in plain PyTorch.

    Args:
        frames: uint8 `[F, 3, H, W]` in any memory layout, H and W multiples of P.
        weight: `[D, 3, P, P]` of the patch convolution, which has no bias.
        class_embedding: `[D]`.
        position_embedding: `[1 + N, D]`.
        norm_weight: `[D]` of the layer norm before the encoder, as `norm_bias`.
        image_mean: per channel, of pixels in 0..1, as `image_std`.
        eps: of the layer norm.

    Returns:
        `[F, 1 + N, D]` in the dtype of `weight`.
    """
    mean = torch.tensor(image_mean, device=frames.device).view(3, 1, 1)
    std = torch.tensor(image_std, device=frames.device).view(3, 1, 1)
    pixels = ((frames.float() / 255 - mean) / std).to(weight.dtype)
    patches = F.conv2d(pixels, weight, stride=weight.shape[-2:]).flatten(2).transpose(1, 2)
    tokens = torch.cat([class_embedding.expand(len(frames), 1, -1), patches], dim=1)
    return F.layer_norm(tokens + position_embedding, tokens.shape[-1:], norm_weight, norm_bias, eps)
