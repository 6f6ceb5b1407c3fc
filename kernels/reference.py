"""Every kernel of this folder in plain PyTorch: tests compare the kernels with it, and it runs where Triton cannot."""

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
    """See `kernels/frame_patch_embed.py`."""
    mean = torch.tensor(image_mean, device=frames.device).view(3, 1, 1)
    std = torch.tensor(image_std, device=frames.device).view(3, 1, 1)
    pixels = ((frames.float() / 255 - mean) / std).to(weight.dtype)
    patches = F.conv2d(pixels, weight, stride=weight.shape[-2:]).flatten(2).transpose(1, 2)
    tokens = torch.cat([class_embedding.expand(len(frames), 1, -1), patches], dim=1)
    return F.layer_norm(tokens + position_embedding, tokens.shape[-1:], norm_weight, norm_bias, eps)


def add_norm(
    hidden_states: torch.Tensor,
    added: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    *,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels/add_norm.py`."""
    if added.shape == hidden_states.shape:
        total = hidden_states + added
    else:
        clips = hidden_states.unflatten(0, (-1, added.shape[-2]))  # [clips, T, N, D]
        total = (clips + added.unsqueeze(-2)).flatten(0, 1)
    return total, F.layer_norm(total, total.shape[-1:], norm_weight, norm_bias, eps)


def temporal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, num_frames: int, num_heads: int, scale: float
) -> torch.Tensor:
    """See `kernels/temporal_attention.py`."""
    positions = query.shape[1]

    def over_time(states: torch.Tensor) -> torch.Tensor:  # [F, N, D] -> [clips * N, heads, T, head size]
        states = states.unflatten(0, (-1, num_frames)).unflatten(-1, (num_heads, -1))
        return states.permute(0, 2, 3, 1, 4).flatten(0, 1)

    output = F.scaled_dot_product_attention(over_time(query), over_time(key), over_time(value), scale=scale)
    return output.unflatten(0, (-1, positions)).permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2)
