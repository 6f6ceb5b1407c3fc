"""Writes the files of a checkpoint in the original's format, and trains its tokenizer."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save

from vllm_videollava.conversion.small_files import write_json

IMAGE_TOWER_FOLDER, VIDEO_TOWER_FOLDER = "LanguageBind_Image", "LanguageBind_Video_merge"
# The fields that all checkpoints of this format share.
CONFIG = {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_image_tower": IMAGE_TOWER_FOLDER,
    "mm_video_tower": VIDEO_TOWER_FOLDER,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_files(
    folder: Path, config: dict, image_tower: dict, video_tower: dict, tensors: dict[str, torch.Tensor], tokenizer: bytes
) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        config: values of config.json.
        image_tower, video_tower: the towers' `vision_config`.
        tensors: tensors under the original's names, those of the towers included.
        tokenizer: a SentencePiece model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    for name, model_type, vision_config in (
        (IMAGE_TOWER_FOLDER, "LanguageBindImage", image_tower),
        (VIDEO_TOWER_FOLDER, "LanguageBindVideo", video_tower),
    ):
        (folder / name).mkdir(exist_ok=True)
        write_json(folder / name / "config.json", {"model_type": model_type, "vision_config": vision_config})
    (folder / "tokenizer.model").write_bytes(tokenizer)
    special = {
        name: {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        for name, content in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    typed = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    write_json(folder / "tokenizer_config.json", {**settings, **typed, "model_max_length": 4096})
    # Written like any other file, because `save_file` makes a file that only its owner may read.
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    return folder


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Train a SentencePiece model with LLaMA's settings and return it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
