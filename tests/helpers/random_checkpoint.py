"""A small checkpoint with random weights in Video-LLaVA's original format, tokenizer included.

It has every part of LanguageBind/Video-LLaVA-7B, names and files alike, and
answers with noise, which shows any difference in what is computed.
"""

import math
from pathlib import Path

import torch

from training import original_format

TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
VIDEO_TOWER = {**TOWER, "add_time_attn": True, "num_frames": 8}
CONFIG = {
    **original_format.CONFIG,
    "mm_hidden_size": TOWER["hidden_size"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 384,
    "torch_dtype": "float32",
}


def write_checkpoint(folder: Path, seed: int = 0, **overrides) -> Path:
    """Write the checkpoint, with `overrides` in its config.json, and return its folder."""
    config = {**CONFIG, **overrides}
    tokenizer = original_format.train_tokenizer(_sentences(), CONFIG["vocab_size"])
    return original_format.write_files(folder, config, TOWER, VIDEO_TOWER, random_weights(config, seed), tokenizer)


def _sentences() -> list[str]:
    words = "video clip image frame person dog ball red blue green left right slowly holds looks opens street kitchen"
    corpus = [f"USER: What does the {word} show? ASSISTANT: It shows a {word}, moving." for word in words.split()]
    return corpus + [
        f"A chat about the {first} and the {second}." for first in words.split() for second in words.split()
    ]


def random_weights(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """Draw weights under the original checkpoint's names, float32."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        **llama_shapes(config),
        **projector_shapes(config),
        **tower_shapes("model.image_tower.image_tower", TOWER),
        **tower_shapes("model.video_tower.video_tower", VIDEO_TOWER),
    }
    return {name: _random_tensor(name, shape, generator) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if "patch_embedding" in name:
        # Smooth filters, as trained ones are: rounding pixels to 8 bits then matters as little.
        return _smooth(noise) / math.sqrt(math.prod(shape[1:]))
    if "norm" in name:
        return (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embedding" in name or "embed_tokens" in name:
        return 0.5 * noise
    return noise / math.sqrt(math.prod(shape[1:])) * (3.0 if name.startswith("lm_head") else 1.0)


def _smooth(filters: torch.Tensor, size: int = 7) -> torch.Tensor:
    """Make blocks of `size` x `size` weights equal."""
    coarse = filters[..., ::size, ::size].repeat_interleave(size, -1).repeat_interleave(size, -2)
    return coarse[..., : filters.shape[-2], : filters.shape[-1]]


def llama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes | {"lm_head.weight": (vocab, hidden)}


def projector_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    hidden, features = config["hidden_size"], config["mm_hidden_size"]
    if config["mm_projector_type"] == "linear":
        return {"model.mm_projector.weight": (hidden, features), "model.mm_projector.bias": (hidden,)}
    depth = int(config["mm_projector_type"].removeprefix("mlp").removesuffix("x_gelu"))
    shapes = {}
    for index in range(depth):
        layer = f"model.mm_projector.{2 * index}"
        shapes |= {f"{layer}.weight": (hidden, hidden if index else features), f"{layer}.bias": (hidden,)}
    return shapes


def tower_shapes(prefix: str, tower: dict) -> dict[str, tuple[int, ...]]:
    hidden, inner, patch = tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    positions = (tower["image_size"] // patch) ** 2 + 1
    shapes = {
        f"{prefix}.embeddings.class_embedding": (hidden,),
        f"{prefix}.embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        f"{prefix}.embeddings.position_embedding.weight": (positions, hidden),
        **_with_bias(f"{prefix}.pre_layrnorm", (hidden,)),
        **_with_bias(f"{prefix}.post_layernorm", (hidden,)),
    }
    for index in range(tower["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layers.{index}"
        for name in ("q", "k", "v", "out"):
            shapes |= _with_bias(f"{layer}.self_attn.{name}_proj", (hidden, hidden))
            if tower.get("add_time_attn"):
                shapes |= _with_bias(f"{layer}.temporal_attn.{name}_proj", (hidden, hidden))
        if tower.get("add_time_attn"):
            shapes |= {f"{layer}.temporal_embedding": (1, tower["num_frames"], hidden)}
            shapes |= _with_bias(f"{layer}.temporal_layer_norm1", (hidden,))
        shapes |= _with_bias(f"{layer}.mlp.fc1", (inner, hidden)) | _with_bias(f"{layer}.mlp.fc2", (hidden, inner))
        shapes |= _with_bias(f"{layer}.layer_norm1", (hidden,)) | _with_bias(f"{layer}.layer_norm2", (hidden,))
    return shapes


def _with_bias(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
