"""An adapter is checked before the engine loads it; whatever is wrong with it gets a sentence."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from vllm.engine.arg_utils import EngineArgs

from helpers.checkpoints import write_transformers_checkpoint
from helpers.fine_tunes import change_adapter, change_adapter_config, write_lora, write_lora_of_towers
from vllm_videollava.rendering.adapters import AdapterGate


@pytest.fixture(scope="module")
def make_gate(checkpoint):
    def make(**flags) -> AdapterGate:
        args = EngineArgs(str(checkpoint), dtype="float32", enable_lora=True, max_lora_rank=8, **flags)
        return AdapterGate(args.create_engine_config())

    return make


@pytest.fixture(scope="module")
def gate(make_gate):
    return make_gate()


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
    "an old pickle that was cut off": ("non_lora_trainables.bin", b"\x80\x02}q\x00X\x05", "cannot be read; copy or"),
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


def rename(old: str, new: str):
    def change(tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def widen(tensors) -> None:
    for name in tensors:
        if name.endswith("lora_A.weight"):
            tensors[name] = torch.ones(4, 2 * tensors[name].shape[1])


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
# Each would end the engine, or leave a part of the adapter out without a word.
UNFIT = {
    "another model's width": (widen, "changes language_model.model.layers.0.mlp.down_proj.weight as if its shape were"),
    "another model's layers": (rename("layers.1.", "layers.70."), "layers.70.mlp.down_proj.weight, which the served"),
    "another model's names": (
        rename("q_proj", "query"),
        "changes language_model.model.layers.0.self_attn.query.weight",
    ),
    "several adapters in one file": (
        rename("lora_A.weight", "lora_A.default.weight"),
        "whose names vLLM does not know",
    ),
    "half a pair": (lambda tensors: tensors.pop(next(iter(tensors))), "The adapter lacks the tensor lora_A of"),
    "a bias": (
        lambda tensors: tensors.update(
            {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias": torch.ones(128)}
        ),
        "_proj.bias, and vLLM swaps only matrices of LoRA",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), UNFIT.values(), ids=UNFIT)
def test_an_adapter_that_does_not_fit_is_refused(gate, adapter, change, sentence):
    change_adapter(adapter, change)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        gate.check(str(adapter))
    assert str(caught.value).startswith(f"The adapter '{adapter.name}' cannot be loaded: adapter_model.safetensors")


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_head_and_embeddings_are_not_swapped(gate, checkpoint, tmp_path, target):
    adapter = write_lora(tmp_path, checkpoint, projector=False, target_modules=[target]).folder
    with pytest.raises(ValueError, match=r"serve the folder itself"):
        gate.check(str(adapter))


def test_the_kinds_that_vllm_refuses_are_refused(gate, adapter):
    change_adapter_config(adapter, modules_to_save=["embed_tokens"])
    with pytest.raises(ValueError, match=r"adapter_config\.json is refused by vLLM \(.*modules_to_save"):
        gate.check(str(adapter))


def test_towers_are_not_swapped(make_gate, checkpoint, tmp_path):
    adapter = str(write_lora_of_towers(tmp_path, checkpoint).folder)
    with pytest.raises(ValueError, match=r"_tower\..*, which cannot be swapped; serve the folder itself"):
        make_gate(enable_tower_connector_lora=True).check(adapter)


def test_the_flag_for_targets_must_not_leave_any_out(make_gate, adapter):
    make_gate(lora_target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]).check(str(adapter))
    with pytest.raises(ValueError, match=r"_proj\.weight, which --lora-target-modules leaves out"):
        make_gate(lora_target_modules=["qkv_proj", "o_proj", "down_proj"]).check(str(adapter))


def test_what_was_trained_beside_adapter_and_projector_is_not_swapped(gate, adapter):
    torch.save({"base_model.model.model.embed_tokens.weight": torch.ones(3, 3)}, adapter / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"non_lora_trainables\.bin has .*embed_tokens\.weight, and vLLM cannot swap"):
        gate.check(str(adapter))


def test_patterns_are_refused_where_vllm_ignores_them(gate, adapter, monkeypatch):
    change_adapter_config(adapter, alpha_pattern={"q_proj": 3})
    monkeypatch.setattr("vllm_videollava.rendering.adapters.swaps_patterns", lambda: False)
    with pytest.raises(ValueError, match="has a rank_pattern or alpha_pattern, which this vLLM ignores"):
        gate.check(str(adapter))


def test_a_file_that_was_written_anew_is_checked_anew(gate, adapter):
    gate.check(str(adapter))
    change_adapter(adapter, widen)
    with pytest.raises(ValueError, match="belongs to another model"):
        gate.check(str(adapter))


def test_an_adapter_from_the_middle_of_a_training_is_refused(gate, adapter):
    (adapter / "non_lora_trainables.bin").unlink()
    with pytest.raises(ValueError, match=r"non_lora_trainables\.bin is missing, which has the trained projector"):
        gate.check(str(adapter))


def test_an_adapter_is_not_put_on_a_model_that_has_one(checkpoint, tmp_path):
    """W + 2 BA would answer without a word."""
    served = write_lora(tmp_path / "served", checkpoint).folder
    args = EngineArgs(str(served), dtype="float32", enable_lora=True, max_lora_rank=8)
    gate = AdapterGate(args.create_engine_config())
    with pytest.raises(ValueError, match=r"was not trained on the served model, which has an adapter in it"):
        gate.check(str(served))
    other = write_lora(tmp_path / "other", checkpoint, projector=False).folder
    with pytest.raises(ValueError, match="was not trained on the served model"):
        gate.check(str(other))
    gate.check(str(change_adapter_config(other, base_model_name_or_path=str(served))))


@pytest.mark.parametrize(
    ("rank", "flag"), [(24, "start the server with --max-lora-rank 32, or serve"), (600, "; serve")]
)
def test_the_rank_that_is_advised_is_one_that_vllm_takes(gate, adapter, rank, flag):
    change_adapter_config(adapter, r=rank)
    with pytest.raises(ValueError, match=f"has rank {rank}; .*") as caught:
        gate.check(str(adapter))
    assert flag in str(caught.value)


def test_a_projector_is_compared_whatever_its_format_calls_it(checkpoint, adapter, tmp_path):
    """As after `convert --to transformers` of the served model."""
    served = write_transformers_checkpoint(tmp_path / "served", checkpoint)
    gate = AdapterGate(
        EngineArgs(str(served), dtype="float32", enable_lora=True, max_lora_rank=8).create_engine_config()
    )
    tensors = load_file(served / "model.safetensors")
    own = {
        f"base_model.model.model.mm_projector.{layer}.{part}": tensors[f"multi_modal_projector.linear_{number}.{part}"]
        for layer, number in ((0, 1), (2, 2))
        for part in ("weight", "bias")
    }
    torch.save(own, adapter / "non_lora_trainables.bin")
    gate.check(str(adapter))
    (adapter / "non_lora_trainables.bin").unlink()
    with pytest.raises(ValueError, match="which has the trained projector"):
        gate.check(str(adapter))
