"""`vllm-videollava check`: tell what is installed, and what a checkpoint consists of."""

import argparse
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_videollava.commands.models import find_problem, resolve
from vllm_videollava.commands.vllm import find_plugin_problem

if TYPE_CHECKING:
    from vllm_videollava.checkpoints.config import VideoLlavaConfig

HELP = "show which versions, device and decoder are used, and what a checkpoint consists of"
EXAMPLE = "vllm-videollava check tiny"
HANDS_ON = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="checkpoint to describe: a folder, a Hugging Face repository or `tiny`"
    )


def run(args: argparse.Namespace) -> int:
    """Print a few lines about the installation; return 1 if something is missing."""
    import vllm
    from vllm.platforms import current_platform

    problem = find_plugin_problem()
    print(f"plugin   {f'NOT LOADED: {problem}' if problem else 'found'}")
    print(f"package  {version('vllm-videollava')}")
    print(f"vllm     {vllm.__version__}")
    print(f"device   {current_platform.device_name}")
    decodes = _check_decoder()
    return 1 if problem or not decodes or (args.model and not _check_model(args.model)) else 0


def _check_decoder() -> bool:
    from vllm_videollava.decoding.settings import read_settings
    from vllm_videollava.media.io import check_decoding

    try:
        name, distribution = {"pyav": ("PyAV", "av"), "decord": ("decord", "decord2")}[read_settings().decoder]
        check_decoding()
    except (ValueError, RuntimeError) as error:
        print(f"decoder  NOT WORKING: {error}")
        return False
    print(f"decoder  {name} {version(distribution)}")
    return True


def _check_model(model: str) -> bool:
    from transformers import AutoConfig

    from vllm_videollava.checkpoints.config import VideoLlavaConfig, check_config

    checkpoint = resolve(model)
    try:
        if problem := find_problem(checkpoint):
            raise ValueError(problem)
        config = AutoConfig.from_pretrained(checkpoint)
        if isinstance(config, VideoLlavaConfig):
            check_config(config, checkpoint)
            parts = _describe_parts(checkpoint, config)
    except (ValueError, OSError) as error:
        print(f"model    {model}: {error}")
        return False
    if not isinstance(config, VideoLlavaConfig):
        print(
            f"model    {model}: {config.model_type} is not Video-LLaVA; this package does not change how vLLM serves it"
        )
        return False
    text, video = config.text_config, config.video_config
    print(f"model    {model}: {'original' if config.original_format else 'transformers'} format")
    print(f"         LLaMA: {text.num_hidden_layers} layers of {text.hidden_size}, vocabulary {text.vocab_size}")
    print(f"         image: {config.tokens_per_image} tokens at {config.image_config.image_size} pixels")
    print(f"         video: {config.tokens_per_video} tokens, {config.num_frames} frames at {video.image_size} pixels")
    print(f"         temporal attention: {'yes' if video.add_time_attn else 'no'}")
    for name, value in (parts | _describe_memory(config)).items():
        print(f"         {name}: {value}")
    return True


def _describe_parts(checkpoint: str, config: "VideoLlavaConfig") -> dict[str, str]:
    """Tell where each part of a checkpoint is; the tensors are checked as well, if nothing has to be downloaded.

    Raises:
        ValueError: a tensor is missing, misshapen or surplus.
    """
    from vllm_videollava.checkpoints.fine_tune import PROJECTOR, TRAINABLES, find_fine_tune

    fine_tune = find_fine_tune(checkpoint, config.original_values or {})
    parts = {"kind": "whole model"}
    if fine_tune:
        adapter = fine_tune.adapter
        parts["kind"] = f"LoRA of rank {adapter.r} ({fine_tune.files[0]})" if adapter else "projector"
        parts["base"] = config.base_model
        parts["projector"] = fine_tune.files[-1] if fine_tune.files[-1] in (TRAINABLES, PROJECTOR) else "of the base"
    from vllm_videollava.checkpoints.weight_files import whole_model_files
    from vllm_videollava.conversion.completeness import select
    from vllm_videollava.conversion.files import store
    from vllm_videollava.conversion.source import open_model

    base = config.base_model or checkpoint
    if not (Path(checkpoint).is_dir() and Path(base).is_dir()) or getattr(config, "quantization_config", None):
        return parts
    stored = store(whole_model_files(base))
    if not stored:
        raise ValueError(f"{base} has no weights; it must have a whole model, an adapter or a projector.")
    for tower in ("image_tower", "video_tower"):
        source = getattr(config, f"{tower}_source")
        if source and not Path(source).is_dir() and not any(name.startswith(f"{tower}.") for name in stored):
            parts[tower.replace("_", " ")] = f"{source}, which serving downloads; no tensors were checked"
            return parts

    model = select(open_model(checkpoint, config), config)
    for tower in ("image_tower", "video_tower"):
        own = next(stored.name for name, stored in model.items() if name.startswith(f"{tower}."))
        is_apart = own.startswith(f"{tower}.") and config.original_format
        parts[tower.replace("_", " ")] = getattr(config, f"{tower}_source") if is_apart else "beside the other weights"
    return parts


def _describe_memory(config: "VideoLlavaConfig") -> dict[str, str]:
    from vllm.platforms import current_platform

    from vllm_videollava.tensors.names import is_computed_with
    from vllm_videollava.tensors.shapes import model_shapes

    linear = rest = 0
    for name, shape in model_shapes(config).items():
        if is_computed_with(name, config):
            is_linear = re.search(r"language_model\.model\.layers\..*_proj\.weight", name)
            linear, rest = (linear + shape.numel(), rest) if is_linear else (linear, rest + shape.numel())
    # With 4 bits, each 128 weights have a scale of 16 bits.
    gigabytes = {bits: (linear * (bits + (bits == 4) / 8) / 8 + rest * 2) / 1e9 for bits in (16, 8, 4)}
    memory = {"weights": ", ".join(f"{value:.3g} GB with {bits} bits" for bits, value in gigabytes.items())}
    text = config.text_config
    head_size = text.hidden_size // text.num_attention_heads
    video = 4 * text.num_hidden_layers * text.num_key_value_heads * head_size * config.tokens_per_video / 1e9
    memory["a video in the cache"] = f"{video:.3g} GB"
    if current_platform.is_cuda_alike():
        room = 0.9 * current_platform.get_device_total_memory() / 1e9
        fits = ", ".join(f"{max(0, int((room - value) / video))} with {bits} bits" for bits, value in gigabytes.items())
        memory["videos that fit beside the weights, at most"] = fits
    return memory
