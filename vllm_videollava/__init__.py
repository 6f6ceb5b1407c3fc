"""A vLLM plugin for Video-LLaVA. Importing this package is cheap; `register` tells vLLM about the model.

The public interface is `register`, `tiny_checkpoint` and the command `vllm-videollava`; everything else may change.
"""

from pathlib import Path

PLUGIN = "video_llava"
"""The entry point's name; if VLLM_PLUGINS is set, it must contain this name."""


def tiny_checkpoint() -> Path:
    """Return the folder of the tiny trained checkpoint that comes with the package; its README.md is the model card."""
    return Path(__file__).parent / "tiny" / "checkpoint"


def register() -> None:
    """Register config, tokenizer, renderer, media connector and model with vLLM.

    vLLM calls this in every process through the entry point
    `vllm.general_plugins`. Everything heavy is registered by name and imported
    on first use; a second call changes nothing.
    """
    from vllm_videollava.plugin import register

    register()
