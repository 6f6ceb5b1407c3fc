"""Variants of checkpoints: transformers' format, and changes to a checkpoint's tensors."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.models.llama import LlamaTokenizer

IMAGE_SIZE = 56


NAMES = ("before 4.52", "from 4.52 on", "from 5 on")
"""The ways in which transformers has named the tensors of Video-LLaVA's checkpoints."""


def write_transformers_checkpoint(folder: Path, original: Path, names: str = "from 5 on") -> Path:
    """Write a random checkpoint as transformers writes it, with the vocabulary of the checkpoint `original`."""
    torch.manual_seed(0)
    tokenizer = LlamaTokenizer.from_pretrained(original)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    image_id, video_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        initializer_range=0.1,
    )
    config = VideoLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, video_token_index=video_id
    )
    model = VideoLlavaForConditionalGeneration(config).float()
    # Padding of the vocabulary is never an answer of a trained model.
    model.lm_head.weight.data[len(tokenizer) :] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if names != "from 5 on":
        change_tensors(folder, restore_vision_model)
    if names == "from 4.52 on":
        change_tensors(folder, _put_below_model)
    return folder


def restore_vision_model(tensors: dict[str, torch.Tensor]) -> None:
    """Give the towers' tensors the names that they had before transformers 5."""
    for name in list(tensors):
        if re.match(r"(image|video|vision)_tower\.", name):
            tensors[name.replace("_tower.", "_tower.vision_model.", 1)] = tensors.pop(name)


def _put_below_model(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        new = f"model.{name}".replace("model.language_model.model.", "model.language_model.")
        tensors[new.replace("model.language_model.lm_head.", "lm_head.")] = tensors.pop(name)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Let `change` edit the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **values) -> Path:
    """Set values in a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def copy_checkpoint(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))
