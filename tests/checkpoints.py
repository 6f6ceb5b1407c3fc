"""Variants of checkpoints: transformers' format, and changes to a checkpoint's tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.models.llama import LlamaTokenizer

IMAGE_SIZE = 56


def write_transformers_checkpoint(folder: Path, original: Path, old_names: bool = False) -> Path:
    """Write a random checkpoint as transformers writes it, with the vocabulary of the checkpoint `original`.

    Args:
        old_names: use the tensor names of transformers before 4.52.
    """
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
    config = VideoLlavaConfig(vision, text, image_token_index=image_id, video_token_index=video_id)
    model = VideoLlavaForConditionalGeneration(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if old_names:
        change_tensors(folder, _to_old_names)
    return folder


def _to_old_names(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        old = name.replace("model.language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")
        for tower in ("image_tower", "video_tower"):
            old = old.replace(f"model.{tower}.vision_model.", f"model.{tower}.")
            old = old.replace(f"model.{tower}.", f"{tower}.vision_model.")
        tensors[old.replace("model.multi_modal_projector", "multi_modal_projector")] = tensors.pop(name)


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
