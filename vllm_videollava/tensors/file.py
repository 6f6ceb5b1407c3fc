"""Maps a file of weights into memory, in both of the formats that checkpoints have."""

import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name; their bytes are read when they are used.

    A .bin file that PyTorch wrote before 1.6 cannot be mapped and is read as a whole.

    Raises:
        ValueError: the file cannot be read, or has something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    # A damaged pickle raises errors of nearly every kind.
    except Exception as error:
        raise ValueError(f"{path} cannot be read; copy or download it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} has something else than tensors; it must have tensors by their names.")
    return tensors
