"""`vllm-videollava check`: tell what is installed, and the format and sizes of a checkpoint."""

import argparse
from importlib.metadata import version

from vllm_videollava.commands.models import resolve
from vllm_videollava.commands.vllm import find_plugin_problem

HELP = "show which versions, device and decoder are used, and the format and sizes of a checkpoint"
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

    from vllm_videollava.checkpoints.config import VideoLlavaConfig

    try:
        config = AutoConfig.from_pretrained(resolve(model))
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
    return True
