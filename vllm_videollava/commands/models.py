"""The models that commands know by name."""

from vllm_videollava import tiny_checkpoint

TINY = "tiny"
"""Names the checkpoint that comes with the package."""


def resolve(model: str) -> str:
    """Return the folder or repository that a name on the command line means."""
    return str(tiny_checkpoint()) if model == TINY else model
