"""vLLM plugin for Video-LLaVA: importing this package is free, `register` tells vLLM about the model."""

from pathlib import Path

ARCHITECTURE = "VideoLlavaForConditionalGeneration"
PLUGIN = "video_llava"
"""The entry point's name, which VLLM_PLUGINS has to name if it is set."""


def tiny_checkpoint() -> Path:
    """Return the folder of the tiny trained checkpoint that comes with the package; its README.md is the model card."""
    return Path(__file__).parent / "tiny" / "checkpoint"


def register() -> None:
    """Register config, tokenizer, renderer, media connector and model with vLLM.

    vLLM calls this in every process through the entry point
    `vllm.general_plugins`. Everything heavy is registered by name and imported
    on first use; a second call changes nothing.
    """
    from vllm import ModelRegistry

    if ARCHITECTURE in ModelRegistry.get_supported_archs():
        return

    from vllm_videollava import plugin
    from vllm_videollava.checkpoints import config

    config.register()
    plugin.register(ARCHITECTURE)
    ModelRegistry.register_model(ARCHITECTURE, f"vllm_videollava.model.video_llava:{ARCHITECTURE}")
