"""Write a small checkpoint with random weights in Video-LLaVA's original format, tokenizer included.

    python examples/random_checkpoint.py FOLDER

It has every part of LanguageBind/Video-LLaVA-7B, names and files alike, and
answers with noise.
"""

import argparse
import io
import json
import math
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

VOCAB_SIZE = 384
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
LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": False,
}
CONFIG = {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_image_tower": "LanguageBind_Image",
    "mm_video_tower": "LanguageBind_Video_merge",
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": TOWER["hidden_size"],
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    **LLAMA,
}


def write_checkpoint(folder: Path, seed: int = 0, **overrides) -> Path:
    """Write the checkpoint, with `overrides` in its config.json, and return its folder."""
    config = {**CONFIG, **overrides}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    for name, model_type, vision_config in (
        ("LanguageBind_Image", "LanguageBindImage", TOWER),
        ("LanguageBind_Video_merge", "LanguageBindVideo", VIDEO_TOWER),
    ):
        (folder / name).mkdir(exist_ok=True)
        write_json(folder / name / "config.json", {"model_type": model_type, "vision_config": vision_config})
    write_tokenizer(folder)
    save_file(random_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2))


def write_tokenizer(folder: Path) -> None:
    """Train a SentencePiece tokenizer with LLaMA's settings on a few sentences and write its files."""
    words = "video clip image frame person dog ball red blue green left right slowly holds looks opens street kitchen"
    corpus = [f"USER: What does the {word} show? ASSISTANT: It shows a {word}, moving." for word in words.split()]
    corpus += [f"A chat about the {first} and the {second}." for first in words.split() for second in words.split()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    special = {
        name: {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        for name, content in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    typed = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    write_json(folder / "tokenizer_config.json", {**settings, **typed, "model_max_length": 4096})


def random_weights(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """Draw weights under the original checkpoint's names, float32."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        **llama_shapes(config),
        **projector_shapes(config),
        **tower_shapes("model.image_tower.image_tower", TOWER),
        **tower_shapes("model.video_tower.video_tower", VIDEO_TOWER),
    }
    return {name: _draw(name, shape, generator) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(write_checkpoint(parser.parse_args().folder))
