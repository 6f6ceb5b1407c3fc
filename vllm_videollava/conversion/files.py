"""Reads single tensors from files of weights, and keeps little of them in memory."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from vllm_videollava.tensors.file import map_tensors
from vllm_videollava.tensors.merging import canonical

MOST_MAPPED = 1 << 28
"""Bytes that are read from a file before it is mapped anew, which takes those bytes out of this process's memory."""


class StoredTensor(NamedTuple):
    """A tensor that has not been read.

    Attributes:
        name: its name in the checkpoint.
        spec: shape and dtype, as a tensor on PyTorch's meta device.
        read: returns the tensor.
    """

    name: str
    spec: torch.Tensor
    read: Callable[[], torch.Tensor]


class TensorReader:
    """Maps files into memory, one at a time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes_read = 0

    def tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """Return all tensors of a file by name; none has been read.

        Raises:
            ValueError: the file cannot be read, or has something else.
        """
        if path != self._path or self._bytes_read >= MOST_MAPPED:
            self._tensors = {}
            self._path, self._tensors, self._bytes_read = path, map_tensors(path), 0
        return self._tensors

    def read(self, path: Path, name: str) -> torch.Tensor:
        tensor = self.tensors(path)[name]
        self._bytes_read += tensor.nbytes
        return tensor


def read_all(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return the tensors of some files, mapped into memory."""
    return {name: tensor for path in paths for name, tensor in map_tensors(path).items()}


def store(paths: Iterable[Path], prefix: str = "") -> dict[str, StoredTensor]:
    """Return what some files have, by this model's names.

    Args:
        prefix: is put before the names in the files.
    """
    stored = {}
    reader = TensorReader()
    for path in paths:
        for name, tensor in reader.tensors(path).items():
            spec = torch.empty_like(tensor, device="meta")
            stored[canonical(prefix + name)] = StoredTensor(prefix + name, spec, partial(reader.read, path, name))
    return stored
