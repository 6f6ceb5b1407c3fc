"""Reads a tensor that a client has saved with `torch.save` or `numpy.save`, without running or allocating what it says.

`torch.load` is not made for files of strangers: even with `weights_only`, a short
file can make it allocate any amount of memory.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import torch

_MAX_PICKLE_BYTES = 4096
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}


class _Saved(NamedTuple):
    """The arguments with which `torch.load` would build a tensor."""

    storage: Any
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: Any


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles the description of one tensor, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Saved
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a saved tensor.")

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        kind, dtype, key, _device, _length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("The tensor has no storage.")
        return dtype, str(key)


def load_tensor(content: bytes) -> torch.Tensor:
    """Return the dense tensor in a file.

    Raises:
        Exception: the file has anything else, or is damaged.
    """
    if content.startswith(b"\x93NUMPY"):
        return torch.from_numpy(np.load(io.BytesIO(content)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        description = entries["data.pkl"]
        if description.file_size > _MAX_PICKLE_BYTES or description.compress_type != zipfile.ZIP_STORED:
            raise ValueError("The description of the tensor is too long.")
        saved = _TensorUnpickler(io.BytesIO(archive.read(description))).load()
        if type(saved) is not _Saved:
            raise ValueError("The file has no single tensor.")
        dtype, key = saved.storage
        data = entries[f"data/{key}"]
        if data.compress_type != zipfile.ZIP_STORED or data.file_size > len(content):
            raise ValueError("The tensor is compressed.")
        values = torch.frombuffer(bytearray(archive.read(data)), dtype=dtype)
    tensor = values[saved.offset : saved.offset + int(np.prod(saved.size, dtype=object))].reshape(saved.size)
    if tensor.stride() != tuple(saved.stride):
        raise ValueError("The tensor is not contiguous.")
    return tensor
