"""Writes tensors into shards in safetensors' format, one after another; the library needs a whole shard in memory."""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tqdm import tqdm

from vllm_videollava.conversion.small_files import write_json

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
}
Specs = Mapping[str, torch.Tensor]
"""Shape and dtype of each tensor, by name."""


def write_shards(folder: Path, specs: Specs, tensors: Iterable[tuple[str, torch.Tensor]], shard_size: str) -> None:
    """Write model.safetensors, or several shards and their index, and show how far it is.

    Args:
        specs: of all tensors, in the order in which they are given out to shards.
        tensors: all of them, in about the same order.
        shard_size: most that a shard has, such as 4GB, unless one tensor has more.
    """
    split = split_torch_state_dict_into_shards(
        dict(specs), filename_pattern="model{suffix}.safetensors", max_shard_size=shard_size
    )
    shards: dict[str, _Shard] = {}
    with (
        ExitStack() as files,
        tqdm(total=sum(spec.nbytes for spec in specs.values()), unit="B", unit_scale=True, desc="Converting") as bar,
    ):
        for name, tensor in tensors:
            file_name = split.tensor_to_filename[name]
            if file_name not in shards:
                file = files.enter_context((folder / file_name).open("xb"))
                shards[file_name] = _Shard(file, {key: specs[key] for key in split.filename_to_tensors[file_name]})
            shards[file_name].write(name, tensor)
            bar.update(tensor.nbytes)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


class _Shard:
    """A file that is filled in any order and is closed when it has all of its tensors."""

    def __init__(self, file: BinaryIO, specs: Specs) -> None:
        self._file = file
        header, self._offsets = _lay_out(specs)
        file.write(header)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        self._file.seek(self._offsets.pop(name))
        self._file.write(memoryview(tensor.contiguous().view(torch.uint8).numpy()))
        if not self._offsets:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _lay_out(specs: Specs) -> tuple[bytes, dict[str, int]]:
    """Return the header of a file, and where in the file each tensor begins."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    # The library's order too, which aligns each tensor to its dtype.
    for name, spec in sorted(specs.items(), key=lambda item: -item[1].itemsize):
        begins[name], end = end, end + spec.nbytes
        entries[name] = {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begins[name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + begin for name, begin in begins.items()}
