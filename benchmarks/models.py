"""Random checkpoints and configs in several sizes: Video-LLaVA, its LLaMA alone, and LLaVA-NeXT-Video."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers.models.llama import LlamaTokenizer

from vllm_videollava import tiny_checkpoint

IMAGE_SIZE, PATCH = 224, 14
# LLaVA-NeXT-Video makes 144 tokens of a frame, so that 14 frames have about as many as Video-LLaVA's 8.
LLAVA_NEXT_IMAGE_SIZE, LLAVA_NEXT_FRAMES = 336, 14
LLAVA_NEXT_TEMPLATE = """\
{%- for message in messages -%}
USER: {% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<video>\n' }}{% endfor %}
{%- endfor %} ASSISTANT:"""


class Size(NamedTuple):
    """The shape of a model: widths, heads and numbers of layers."""

    tower_width: int
    tower_heads: int
    tower_layers: int
    llama_width: int
    llama_mlp: int
    llama_heads: int
    llama_layers: int
    vocabulary: int


SIZES = {
    "tiny": Size(128, 2, 4, 128, 256, 4, 4, 832),
    # Two cores answer a question about a video in a few seconds. Most of the arithmetic is LLaMA's, as with 7B.
    "middle": Size(512, 8, 1, 512, 1376, 8, 4, 32064),
    "7B": Size(1024, 16, 24, 4096, 11008, 32, 32, 32064),
}


def video_llava_config(size: Size) -> VideoLlavaConfig:
    """Return transformers' config for a size."""
    image_id, video_id = make_tokenizer().convert_tokens_to_ids(["<image>", "<video>"])
    return VideoLlavaConfig(
        vision_config=_vision_config(size),
        text_config=_llama_config(size),
        image_token_index=image_id,
        video_token_index=video_id,
        # Those of the last layer, because transformers always computes all layers.
        vision_feature_layer=-1,
    )


WITHOUT_WEIGHTS = ("7B",)
"""Sizes whose weights would take too long to write; vLLM and transformers each draw their own."""


def check_device(name: str) -> None:
    """End the program if a size of the model needs a GPU and there is none."""
    if name in WITHOUT_WEIGHTS and not torch.cuda.is_available():
        sys.exit(f"There is no GPU: the {name} model's shape needs one.")


def write_checkpoint(folder: Path, name: str) -> tuple[Path, dict[str, str]]:
    """Write a checkpoint to measure, and return it with the options that vLLM needs to load it.

    Without weights it is in the original's format, else in transformers'.
    """
    if name in WITHOUT_WEIGHTS:
        return write_original(folder, SIZES[name]), {"load_format": "dummy"}
    return write_video_llava(folder, SIZES[name]), {}


def write_video_llava(folder: Path, size: Size) -> Path:
    """Write a checkpoint of Video-LLaVA in transformers' format; return the folder."""
    VideoLlavaForConditionalGeneration(video_llava_config(size)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_llama(folder: Path, size: Size) -> Path:
    """Write the config of the same LLaMA alone; there are no weights."""
    config = _llama_config(size)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_llava_next_video(folder: Path, size: Size) -> Path:
    """Write the config and the processor of LLaVA-NeXT-Video around the same LLaMA; there are no weights."""
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    tokenizer = make_tokenizer()
    image_id, video_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    vision_config = _vision_config(size)
    vision_config.image_size = LLAVA_NEXT_IMAGE_SIZE
    config = LlavaNextVideoConfig(
        vision_config=vision_config,
        text_config=_llama_config(size),
        image_token_index=image_id,
        video_token_index=video_id,
        architectures=["LlavaNextVideoForConditionalGeneration"],
    )
    config.save_pretrained(folder)
    shape = {"height": LLAVA_NEXT_IMAGE_SIZE, "width": LLAVA_NEXT_IMAGE_SIZE}
    sizes = {"size": {"shortest_edge": LLAVA_NEXT_IMAGE_SIZE}, "crop_size": shape}
    processor = LlavaNextVideoProcessor(
        image_processor=LlavaNextImageProcessor(**sizes),
        video_processor=LlavaNextVideoVideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=LLAVA_NEXT_TEMPLATE,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
    )
    processor.save_pretrained(folder)
    return folder


def write_original(folder: Path, size: Size) -> Path:
    """Write the original format's config with the tiny checkpoint's tokenizer; there are no weights."""
    shutil.copytree(tiny_checkpoint(), folder, ignore=shutil.ignore_patterns("*.safetensors", "LanguageBind*"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **_original_config(size)}))
    return folder


def _original_config(size: Size) -> dict[str, Any]:
    return {
        "mm_image_tower": "LanguageBind/LanguageBind_Image",
        "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
        "mm_hidden_size": size.tower_width,
        "hidden_size": size.llama_width,
        "intermediate_size": size.llama_mlp,
        "num_hidden_layers": size.llama_layers,
        "num_attention_heads": size.llama_heads,
        "num_key_value_heads": size.llama_heads,
        "vocab_size": 32000,
        "torch_dtype": "bfloat16",
    }


def make_tokenizer() -> LlamaTokenizer:
    """Return the tiny checkpoint's tokenizer with transformers' placeholders."""
    tokenizer = LlamaTokenizer.from_pretrained(tiny_checkpoint())
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.unk_token, "left"
    return tokenizer


def _vision_config(size: Size) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=size.tower_width,
        intermediate_size=4 * size.tower_width,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=size.tower_heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )


def _llama_config(size: Size) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=size.llama_width,
        intermediate_size=size.llama_mlp,
        num_hidden_layers=size.llama_layers,
        num_attention_heads=size.llama_heads,
        max_position_embeddings=4096,
        vocab_size=size.vocabulary,
        # Wider than when training begins, so that one token is clearly the most probable.
        initializer_range=0.05,
    )
