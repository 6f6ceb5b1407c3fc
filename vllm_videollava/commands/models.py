"""The names that commands have for models."""

from vllm_videollava import tiny_checkpoint

TINY = "tiny"
"""The name of the checkpoint that comes with the package."""


def resolve(model: str) -> str:
    """Return the folder or repository that a name on the command line stands for."""
    return str(tiny_checkpoint()) if model == TINY else model
