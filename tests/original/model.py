"""The original Video-LLaVA in plain PyTorch, written from its description, in float32.

    OriginalVideoLlava.from_folder(folder).generate(ids, media, steps)

Knows the original checkpoint's names and nothing of vLLM or of the package
under test. `temporal_attention=False` and `gelu` break it on purpose.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
PLACEHOLDER = -200


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


class OriginalVideoLlava:
    """Greedy answers and their log-probabilities, recomputing the whole sequence at each step.

    Args:
        weights: the checkpoint's tensors by name.
        config: its config.json.
        image_tower, video_tower: the towers' `vision_config`.
    """

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        config: dict,
        image_tower: dict,
        video_tower: dict,
        temporal_attention: bool = True,
        gelu: Callable[[torch.Tensor], torch.Tensor] = F.gelu,
    ) -> None:
        self.weights = {name: tensor.float() for name, tensor in weights.items()}
        self.config, self.image_tower, self.video_tower = config, image_tower, video_tower
        self.temporal_attention, self.gelu = temporal_attention, gelu

    @classmethod
    def from_folder(cls, folder: Path, **breakages) -> "OriginalVideoLlava":
        """Read a checkpoint whose towers' config.json lie in folders beside its weights."""
        config = json.loads((folder / "config.json").read_text())
        towers = [
            json.loads((folder / config[f"mm_{kind}_tower"] / "config.json").read_text())["vision_config"]
            for kind in ("image", "video")
        ]
        return cls(load_file(folder / "model.safetensors"), config, *towers, **breakages)

    @torch.inference_mode()
    def generate(self, ids: list[int], media: list[torch.Tensor], steps: int) -> tuple[list[int], list[float]]:
        """Answer a prompt greedily.

        Args:
            ids: prompt ids with `PLACEHOLDER` for each image and each video.
            media: in the prompt's order, an image `[3, S, S]` or a video
                `[T, 3, S, S]`, float pixels in 0..255.
            steps: tokens to generate.

        Returns:
            the tokens and their log-probabilities.
        """
        embeddings = self._embed_prompt(ids, media)
        tokens, logprobs = [], []
        for _ in range(steps):
            distribution = self._llama(embeddings)[-1].log_softmax(-1)
            tokens.append(int(distribution.argmax()))
            logprobs.append(float(distribution.max()))
            embeddings = torch.cat([embeddings, self._embed_tokens(tokens[-1:])])
        return tokens, logprobs

    def _embed_tokens(self, ids: list[int]) -> torch.Tensor:
        return self.weights["model.embed_tokens.weight"][torch.tensor(ids, dtype=torch.long)]

    def _embed_prompt(self, ids: list[int], media: list[torch.Tensor]) -> torch.Tensor:
        remaining = iter(media)
        rows = [self.encode(next(remaining)) if token == PLACEHOLDER else self._embed_tokens([token]) for token in ids]
        return torch.cat(rows)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = (pixels / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        if pixels.ndim == 3:
            features = self._tower(pixels[None], "model.image_tower.image_tower", self.image_tower)[:, 1:]
        else:
            features = self._tower(pixels, "model.video_tower.video_tower", self.video_tower)
        return self._projector(features.flatten(0, 1))

    def _projector(self, x: torch.Tensor) -> torch.Tensor:
        kind = self.config["mm_projector_type"]
        if kind == "linear":
            return self._linear(x, "model.mm_projector")
        for index in range(int(kind[3 : kind.index("x")])):
            x = self._linear(F.gelu(x) if index else x, f"model.mm_projector.{2 * index}")
        return x

    def _tower(self, pixels: torch.Tensor, prefix: str, tower: dict) -> torch.Tensor:
        w, heads = self.weights, tower["num_attention_heads"]
        patches = F.conv2d(pixels, w[f"{prefix}.embeddings.patch_embedding.weight"], stride=tower["patch_size"])
        cls = w[f"{prefix}.embeddings.class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + w[f"{prefix}.embeddings.position_embedding.weight"]
        x = self._layer_norm(x, f"{prefix}.pre_layrnorm")
        hidden_states = [x]
        for index in range(tower["num_hidden_layers"]):
            layer = f"{prefix}.encoder.layers.{index}"
            if tower.get("add_time_attn") and self.temporal_attention:
                x = x.transpose(0, 1)  # [N, T, D]
                x = x + w[f"{layer}.temporal_embedding"][:, : x.shape[1]]
                x = x + self._attention(
                    self._layer_norm(x, f"{layer}.temporal_layer_norm1"), f"{layer}.temporal_attn", heads
                )
                x = x.transpose(0, 1)
            x = x + self._attention(self._layer_norm(x, f"{layer}.layer_norm1"), f"{layer}.self_attn", heads)
            inner = self.gelu(self._linear(self._layer_norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1"))
            x = x + self._linear(inner, f"{layer}.mlp.fc2")
            hidden_states.append(x)
        return hidden_states[self.config["mm_vision_select_layer"]]

    def _attention(self, x: torch.Tensor, prefix: str, heads: int) -> torch.Tensor:
        query, key, value = (
            self._linear(x, f"{prefix}.{name}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv"
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return self._linear((scores.softmax(-1) @ value).transpose(1, 2).flatten(2), f"{prefix}.out_proj")

    def _linear(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"{prefix}.weight"], self.weights.get(f"{prefix}.bias"))

    def _layer_norm(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{prefix}.weight"], self.weights[f"{prefix}.bias"], 1e-5)

    def _llama(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            x = x + self._causal_attention(self._rms_norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn")
            h = self._rms_norm(x, f"{layer}.post_attention_layernorm")
            gate, up = self._linear(h, f"{layer}.mlp.gate_proj"), self._linear(h, f"{layer}.mlp.up_proj")
            x = x + self._linear(F.silu(gate) * up, f"{layer}.mlp.down_proj")
        return self._linear(self._rms_norm(x, "model.norm"), "lm_head")

    def _rms_norm(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.weights[f"{prefix}.weight"]

    def _causal_attention(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        heads, length = self.config["num_attention_heads"], len(x)
        query, key, value = (
            self._linear(x, f"{prefix}.{name}_proj").unflatten(-1, (heads, -1)).transpose(0, 1) for name in "qkv"
        )
        query, key = self._rotate(query), self._rotate(key)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores + torch.full((length, length), -math.inf).triu(1)
        return self._linear((scores.softmax(-1) @ value).transpose(0, 1).flatten(1), f"{prefix}.o_proj")

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:  # [heads, length, size]
        half = x.shape[-1] // 2
        frequencies = 1.0 / 10000.0 ** (torch.arange(half) / half)
        angles = torch.arange(x.shape[-2])[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
