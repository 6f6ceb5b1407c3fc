"""Shards are files as the safetensors library writes them."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from vllm_videollava.conversion.writing import write_shards

DTYPES = (torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.int64)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Tensors of every dtype with odd numbers of elements, the smallest elements first."""
    return {str(dtype): torch.arange(3 * size).reshape(3, -1).to(dtype) for size, dtype in enumerate(DTYPES, start=1)}


@pytest.mark.parametrize("order", [1, -1])
def test_the_library_reads_them(tmp_path, tensors, order):
    write_shards(tmp_path, tensors, list(tensors.items())[::order], "1GB")
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor, atol=0, rtol=0)


def test_tensors_are_aligned_and_have_nothing_between_them(tmp_path, tensors):
    write_shards(tmp_path, tensors, tensors.items(), "1GB")
    data = (tmp_path / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    del header["__metadata__"]
    for name, entry in header.items():
        assert (begin + entry["data_offsets"][0]) % tensors[name].itemsize == 0
    offsets = sorted(entry["data_offsets"] for entry in header.values())
    assert offsets[0][0] == 0
    assert begin + offsets[-1][1] == len(data)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(offsets))
