"""The names that commands have for models, and what makes a folder no model at all."""

from pathlib import Path

from vllm_videollava import tiny_checkpoint

TINY = "tiny"
"""The name of the checkpoint that comes with the package."""


def resolve(model: str) -> str:
    """Return the folder or repository that a name on the command line stands for."""
    return str(tiny_checkpoint()) if model == TINY else model


def find_problem(model: str) -> str | None:
    """Return a sentence about a folder that lacks a config.json, which vLLM and transformers explain at length."""
    folder = Path(model)
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    if (folder / "adapter_config.json").exists():
        return (
            f"{model} has an adapter but no config.json; copy it from the base, or if the adapter was saved in the "
            "middle of a training, copy it and non_lora_trainables.bin from the folder where the training ended."
        )
    return f"{model} has no config.json, so it is not a checkpoint."
