"""Video-LLaVA in plain PyTorch, for training; its state dict has the original checkpoint's tensor names."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from vllm_videollava.decoding.pixels import IMAGE_MEAN, IMAGE_STD


class Attention(nn.Module):
    """Attention over the second to last dimension, with biases as in CLIP."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(hidden_size, hidden_size) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, N, D]
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(_attend(query, key, value).transpose(-2, -3).flatten(-2))


class TowerMLP(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden_size, intermediate_size = config["hidden_size"], config["intermediate_size"]
        self.fc1, self.fc2 = nn.Linear(hidden_size, intermediate_size), nn.Linear(intermediate_size, hidden_size)
        self.activation = ACT2FN[config["hidden_act"]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class TowerLayer(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        size, heads, eps = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]
        self.num_frames = config["num_frames"] if config.get("add_time_attn") else None
        if self.num_frames:
            # A ramp from the start, because attention that cannot tell early from late frames sees only averages and
            # learns slowly.
            ramp = torch.linspace(-1, 1, self.num_frames)[:, None]
            self.temporal_embedding = nn.Parameter(0.5 * (ramp * torch.randn(size))[None])
            self.temporal_layer_norm1 = nn.LayerNorm(size, eps=eps)
            self.temporal_attn = Attention(size, heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(size, eps=eps), nn.LayerNorm(size, eps=eps)
        self.self_attn = Attention(size, heads)
        self.mlp = TowerMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [F, N, D]
        if self.num_frames:
            x = x.unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # [B, N, T, D]
            x = x + self.temporal_embedding
            x = x + self.temporal_attn(self.temporal_layer_norm1(x))
            x = x.transpose(1, 2).flatten(0, 1)
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        size, patch = config["hidden_size"], config["patch_size"]
        self.class_embedding = nn.Parameter(0.02 * torch.randn(size))
        self.patch_embedding = nn.Conv2d(3, size, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config["image_size"] // patch) ** 2 + 1, size)
        nn.init.normal_(self.position_embedding.weight, std=0.2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # [F, 3, S, S]
        # The convolution is computed as a product of matrices, because its gradient is several times faster on a CPU.
        size = self.patch_embedding.kernel_size[0]
        patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        patches = F.linear(patches, self.patch_embedding.weight.flatten(1))
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        return tokens + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TowerLayer(config) for _ in range(config["num_hidden_layers"]))


class Tower(nn.Module):
    """Turns frames into hidden states: the first layer's input, and the output of each layer except the last.

    The last layer exists but is not computed, as in the original.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:  # uint8 [F, 3, S, S] -> each [F, 1 + N, D]
        states = [self.pre_layrnorm(self.embeddings((frames / 255 - self.mean) / self.std))]
        for layer in self.encoder.layers[:-1]:
            states.append(layer(states[-1]))
        return states


class LlamaAttention(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        size, self.num_heads = config["hidden_size"], config["num_attention_heads"]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        return self.o_proj(_attend(query, key, value, bias).transpose(1, 2).flatten(2))


class LlamaMLP(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        size, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        self.mlp = LlamaMLP(config)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class NamedTower(nn.Module):
    """Gives a tower's tensors the prefix that they have in the checkpoint, `image_tower.image_tower.`."""

    def __init__(self, name: str, config: dict) -> None:
        super().__init__()
        self.add_module(name, Tower(config))


class VideoLlavaModel(nn.Module):
    def __init__(self, config: dict, image_tower: dict, video_tower: dict) -> None:
        super().__init__()
        size, features = config["hidden_size"], config["mm_hidden_size"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], size)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(size, eps=config["rms_norm_eps"])
        self.mm_projector = nn.Sequential(nn.Linear(features, size), nn.GELU(), nn.Linear(size, size))
        self.image_tower = NamedTower("image_tower", image_tower)
        self.video_tower = NamedTower("video_tower", video_tower)


class VideoLlava(nn.Module):
    """The whole model.

    Args:
        config: the checkpoint's config.json.
        image_tower, video_tower: the towers' `vision_config`.
    """

    def __init__(self, config: dict, image_tower: dict, video_tower: dict) -> None:
        super().__init__()
        self.head_size = config["hidden_size"] // config["num_attention_heads"]
        self.model = VideoLlavaModel(config, image_tower, video_tower)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.5)

    @property
    def image_tower(self) -> Tower:
        return self.model.image_tower.image_tower

    @property
    def video_tower(self) -> Tower:
        return self.model.video_tower.video_tower

    def project(self, features: torch.Tensor, medium: str) -> torch.Tensor:
        """Turn a tower's features `[F, 1 + N, D]` into embeddings, without an image's CLS."""
        return self.model.mm_projector(features if medium == "video" else features[:, 1:])

    def answer(self, embeddings: torch.Tensor, positions: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Compute LLaMA's hidden states.

        Args:
            embeddings: `[B, L, D]`.
            positions: `[B, L]`.
            bias: `[B, 1, L, L]`, 0 or minus infinity, added to each token's
                scores for the tokens that it attends to (last dimension).
        """
        half = self.head_size // 2
        frequencies = 10000.0 ** (-torch.arange(half, device=positions.device) / half)
        angles = positions[:, None, :, None] * frequencies
        rotation = angles.cos(), angles.sin()
        x = embeddings
        for layer in self.model.layers:
            x = layer(x, rotation, bias)
        return self.model.norm(x)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Do the same as `F.scaled_dot_product_attention`, but with a gradient that is several times faster on a CPU."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    # The softmax stays in the dtype of the scores; autocast would make it float32, which is twice as large.
    with torch.autocast(query.device.type, enabled=False):
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        weights = scores.softmax(-1)
    return weights @ value


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:  # [B, heads, L, size]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
