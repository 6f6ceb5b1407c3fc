"""The LanguageBind towers: CLIP's vision transformer, with attention over time if the checkpoint has it."""

from functools import partial

import torch
from torch import nn
from vllm.model_executor.layers.attention import MMEncoderAttention
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.clip import CLIPAttention, CLIPEncoderLayer

from vllm_videollava.checkpoints.tower_config import TowerConfig
from vllm_videollava.decoding.pixels import IMAGE_MEAN, IMAGE_STD
from vllm_videollava.kernels.add_norm import add_norm
from vllm_videollava.kernels.frame_patch_embed import frame_patch_embed
from vllm_videollava.kernels.temporal_attention import temporal_attention


class PatchEmbeddings(nn.Module):
    """Holds the weights of the patch embedding under the checkpoint's names."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)


class TemporalAttention(nn.Module):
    """Attention over the frames at each position, passed to `CLIPAttention` in place of attention over positions."""

    def __init__(self, num_heads: int, head_size: int, scale: float, *, num_frames: int, prefix: str) -> None:
        super().__init__()
        self.num_frames, self.num_heads, self.scale = num_frames, num_heads, scale

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # [F, N, D]
        return temporal_attention(
            query, key, value, num_frames=self.num_frames, num_heads=self.num_heads, scale=self.scale
        )


class LanguageBindEncoderLayer(CLIPEncoderLayer):
    """A CLIP encoder layer, preceded by attention over the frames at each position if the tower has it."""

    def __init__(self, config: TowerConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__(config, quant_config, prefix=prefix, attn_cls=MMEncoderAttention)
        self.num_frames = config.num_frames if config.add_time_attn else None
        if self.num_frames:
            self.temporal_embedding = nn.Parameter(torch.empty(1, config.num_frames, config.hidden_size))
            self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.temporal_attn = CLIPAttention(
                config,
                quant_config,
                prefix=f"{prefix}.temporal_attn",
                attn_cls=partial(TemporalAttention, num_frames=config.num_frames),
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # [F, N, D]
        # What `CLIPEncoderLayer.forward` computes, but each addition and the norm after it are one kernel.
        if self.num_frames:
            hidden_states, normed = _add_norm(hidden_states, self.temporal_embedding, self.temporal_layer_norm1)
            hidden_states, normed = _add_norm(hidden_states, self.temporal_attn(normed)[0], self.layer_norm1)
        else:
            normed = self.layer_norm1(hidden_states)
        hidden_states, normed = _add_norm(hidden_states, self.self_attn(normed)[0], self.layer_norm2)
        return hidden_states + self.mlp(normed)


def _add_norm(
    hidden_states: torch.Tensor, added: torch.Tensor, norm: nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    return add_norm(hidden_states, added, norm.weight, norm.bias, eps=norm.eps)


class LanguageBindEncoder(nn.Module):
    def __init__(
        self, config: TowerConfig, quant_config: QuantizationConfig | None, num_layers: int, prefix: str
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            LanguageBindEncoderLayer(config, quant_config, f"{prefix}.layers.{index}") for index in range(num_layers)
        )


class LanguageBindTower(nn.Module):
    """Turns frames into hidden states; layers after the selected one are not built.

    Args:
        num_layers: encoder layers to compute.
    """

    def __init__(
        self, config: TowerConfig, quant_config: QuantizationConfig | None, num_layers: int, prefix: str
    ) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        # Spelled so in the checkpoints.
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = LanguageBindEncoder(config, quant_config, num_layers, f"{prefix}.encoder")

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames, uint8 `[F, 3, S, S]`, clip after clip, to `[F, 1 + N, D]` with CLS first."""
        hidden_states = frame_patch_embed(
            frames,
            self.embeddings.patch_embedding.weight,
            self.embeddings.class_embedding,
            self.embeddings.position_embedding.weight,
            self.pre_layrnorm.weight,
            self.pre_layrnorm.bias,
            image_mean=IMAGE_MEAN,
            image_std=IMAGE_STD,
            eps=self.pre_layrnorm.eps,
        )
        for layer in self.encoder.layers:
            hidden_states = layer(hidden_states)
        return hidden_states
