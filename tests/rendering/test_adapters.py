"""An adapter is checked before the engine loads it; whatever is wrong with it gets a sentence."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from vllm.engine.arg_utils import EngineArgs

from helpers.fine_tunes import write_lora
from vllm_videollava.rendering.adapters import AdapterGate


@pytest.fixture(scope="module")
def gate(checkpoint):
    config = EngineArgs(str(checkpoint), dtype="float32", enable_lora=True, max_lora_rank=8).create_engine_config()
    return AdapterGate(config)


@pytest.fixture
def adapter(checkpoint, tmp_path):
    return write_lora(tmp_path, checkpoint, projector=False).folder


@pytest.mark.parametrize("is_old", [True, False])
def test_files_of_every_version_of_pytorch_are_read(gate, checkpoint, adapter, is_old):
    tensors = load_file(checkpoint / "model.safetensors")
    own = {f"base_model.model.{name}": tensor for name, tensor in tensors.items() if "mm_projector" in name}
    torch.save(own, adapter / "non_lora_trainables.bin", _use_new_zipfile_serialization=not is_old)
    gate.check(str(adapter))
    own = {name: tensor + 1 for name, tensor in own.items()}
    torch.save(own, adapter / "non_lora_trainables.bin", _use_new_zipfile_serialization=not is_old)
    with pytest.raises(ValueError, match="has another projector than the served model"):
        gate.check(str(adapter))


FAULTS = {
    "no config": ("adapter_config.json", None, "has adapter_model.safetensors, but adapter_config.json is missing."),
    "no weights": ("adapter_model.safetensors", None, "has adapter_config.json, but adapter_model.safetensors or"),
    "cut off": ("adapter_model.safetensors", b"1234567", "has 7 bytes, which are too few for safetensors"),
    "no tensors": ("non_lora_trainables.bin", b"\x80\x02]q\x00.", "non_lora_trainables.bin cannot be read; copy or"),
}


@pytest.mark.parametrize(("name", "data", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_adapter_is_refused_by_the_file(gate, adapter, name, data, sentence):
    (adapter / name).unlink() if data is None else (adapter / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        gate.check(str(adapter))


def test_a_folder_without_an_adapter_is_refused(gate, adapter):
    shutil.rmtree(adapter)
    adapter.mkdir()
    with pytest.raises(ValueError, match=r"has no adapter; it must have adapter_config\.json\.$"):
        gate.check(str(adapter))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/nowhere", "The adapter '/nowhere' is not a folder."),
        ("some/repository", "The adapter 'some/repository' is no folder, and cannot be downloaded."),
    ],
)
def test_an_adapter_that_cannot_be_found_is_refused(gate, path, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        gate.check(path)
