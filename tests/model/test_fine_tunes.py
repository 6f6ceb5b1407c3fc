"""A fine-tune's folder loads as the whole checkpoint that peft merges of it; a damaged one is refused by name."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.model_executor.layers.linear import LinearBase

from helpers.checkpoints import change_config, change_tensors, copy_checkpoint
from helpers.fine_tunes import (
    LAYERS,
    change_adapter,
    change_adapter_config,
    write_lora,
    write_lora_of_towers,
    write_projector,
)
from helpers.loading import model_loading


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    with model_loading(tmp_path_factory.mktemp("rendezvous") / "file") as load:
        yield load


@torch.inference_mode()
def assert_same_weights(ours, expected) -> None:
    """Compare parameters, and what linear layers compute, because vLLM's CPU build packs their weights away."""
    modules = dict(expected.named_modules())
    for name, module in ours.named_modules():
        if isinstance(module, LinearBase):
            inputs = torch.randn(3, module.input_size, generator=torch.Generator().manual_seed(0))
            assert_close(name, *(one(inputs)[0] for one in (module, modules[name])))
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            assert_close(f"{name}.{parameter_name}", parameter, getattr(modules[name], parameter_name))


def assert_close(name: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.numel()
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5, msg=lambda text: f"{name}: {text}")


ADAPTERS = {
    "as the original's script": {"r": 8, "lora_alpha": 16},
    "safetensors absent": {"safetensors": False},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "fan in, fan out": {"fan_in_fan_out": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"v_proj": 32}},
    "few targets": {"target_modules": ["q_proj", "down_proj"]},
    "head and embeddings": {"target_modules": [*LAYERS, "embed_tokens", "lm_head"]},
    "modules to save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "no trained projector": {"projector": False},
}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_loads_as_peft_merges_it(load, checkpoint, tmp_path, options):
    tuned = write_lora(tmp_path, checkpoint, **options)
    assert_same_weights(load(tuned.folder), load(tuned.whole))


def test_an_adapter_of_towers_and_projector_is_merged(load, checkpoint, tmp_path):
    tuned = write_lora_of_towers(tmp_path, checkpoint)
    assert_same_weights(load(tuned.folder), load(tuned.whole))


def test_a_projector_loads_on_its_base(load, checkpoint, tmp_path):
    tuned = write_projector(tmp_path, checkpoint)
    assert_same_weights(load(tuned.folder), load(tuned.whole))


def without_towers(tensors) -> None:
    for name in [name for name in tensors if "_tower" in name or "mm_projector" in name]:
        del tensors[name]


@pytest.fixture
def vicuna(checkpoint, tmp_path):
    """A base that is a plain LLaMA; the towers lie beside the fine-tune."""
    return change_tensors(copy_checkpoint(checkpoint, tmp_path / "vicuna"), without_towers)


def put_towers_beside(folder, checkpoint) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    for tower, name in (("image_tower", "LanguageBind_Image"), ("video_tower", "LanguageBind_Video_merge")):
        shutil.copytree(checkpoint / name, folder / name)
        prefix = f"model.{tower}.{tower}."
        own = {f"vision_model.{key.removeprefix(prefix)}": value for key, value in tensors.items() if prefix in key}
        save_file(own, folder / name / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tuning", [write_lora, write_projector])
def test_the_base_may_be_a_plain_llama(load, checkpoint, vicuna, tmp_path, tuning):
    tuned = tuning(tmp_path / "tuned", checkpoint)
    put_towers_beside(tuned.folder, checkpoint)
    change_config(tuned.folder, _name_or_path=str(vicuna), mm_image_tower="/home/trainer/towers/LanguageBind_Image")
    if tuning is write_lora:
        change_adapter_config(tuned.folder, base_model_name_or_path=str(vicuna))
    assert_same_weights(load(tuned.folder), load(tuned.whole))


def test_the_base_may_be_relative_to_the_folder(load, checkpoint, tmp_path):
    copy_checkpoint(checkpoint, tmp_path / "base")
    tuned = write_lora(tmp_path, checkpoint, base_name="../base")
    assert_same_weights(load(tuned.folder), load(tuned.whole))


def test_the_base_may_be_named_by_a_flag(load, checkpoint, tmp_path):
    tuned = write_lora(tmp_path, checkpoint, base_name="/home/trainer/base")
    model = load(tuned.folder, hf_overrides={"base_model": str(checkpoint)})
    assert_same_weights(model, load(tuned.whole))


@pytest.mark.parametrize("safetensors", [True, False])
def test_what_lies_beside_a_whole_model_is_not_read(load, checkpoint, tmp_path, safetensors):
    copy = copy_checkpoint(checkpoint, tmp_path / "copy")
    if not safetensors:
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
    for name in (
        "mm_projector.bin",
        "non_lora_trainables.bin",
        "training_args.bin",
        "optimizer.pt",
        "consolidated.pth",
    ):
        torch.save({"model.mm_projector.0.weight": torch.zeros(1)}, copy / name)
    save_file({"stale": torch.zeros(1)}, copy / "adapter_old.safetensors")
    (copy / "checkpoint-10").mkdir()
    assert_same_weights(load(copy), load(checkpoint))


def drop(name):
    return lambda tensors: tensors.pop(name)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
DAMAGED_ADAPTERS = {
    "no B": (drop(f"{Q}.lora_B.weight"), r"lacks the tensor lora_B of model\.layers\.0\.self_attn\.q_proj"),
    "no A": (drop(f"{Q}.lora_A.weight"), r"lacks the tensor lora_A of model\.layers\.0\.self_attn\.q_proj"),
    "other rank": (
        lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.zeros(3, 128)}),
        r"q_proj have shapes \[3, 128\] and \[128, 4\]; they must be \[4, inputs\] and \[outputs, 4\]",
    ),
    "other width": (
        lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.zeros(4, 64)}),
        r"make a weight of shape \[128, 64\]; the base's has shape \[128, 128\]",
    ),
    "a layer that the base lacks": (
        lambda tensors: tensors.update(
            {key.replace("layers.0", "layers.7"): tensors[key].clone() for key in list(tensors) if "layers.0" in key}
        ),
        r"changes what its base does not have: language_model\.model\.layers\.7\.",
    ),
    "DoRA": (
        lambda tensors: tensors.update({f"{Q}.lora_magnitude_vector": torch.ones(128)}),
        r"has a tensor of an unknown kind: model\.layers\.0\.self_attn\.q_proj\.lora_magnitude_vector",
    ),
    "bias": (
        lambda tensors: tensors.update({f"{Q}.lora_B.bias": torch.ones(128)}),
        r"has a tensor of an unknown kind: \S+lora_B\.bias",
    ),
    "unknown tensor": (
        lambda tensors: tensors.update({"base_model.model.model.depth": torch.ones(1)}),
        r"tensors that this model does not use: model\.depth",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGED_ADAPTERS.values(), ids=DAMAGED_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_named(load, checkpoint, tmp_path, damage, sentence):
    tuned = write_lora(tmp_path, checkpoint)
    change_adapter(tuned.folder, damage)
    with pytest.raises(ValueError, match=sentence):
        load(tuned.folder)


def test_a_projector_of_another_shape_is_named(load, checkpoint, tmp_path):
    tuned = write_projector(tmp_path, checkpoint)
    torch.save({"model.mm_projector.0.weight": torch.zeros(2, 2)}, tuned.folder / "mm_projector.bin")
    with pytest.raises(ValueError, match=r"mm_projector\.0\.weight has shape \[2, 2\]; it must be \[128, 64\]"):
        load(tuned.folder)


def test_a_base_that_lacks_the_projector_is_named(load, checkpoint, vicuna, tmp_path):
    tuned = write_lora(tmp_path / "tuned", checkpoint, projector=False, base_name=str(vicuna))
    put_towers_beside(tuned.folder, checkpoint)
    with pytest.raises(ValueError, match=r"lacks tensors that this model needs: multi_modal_projector"):
        load(tuned.folder)
