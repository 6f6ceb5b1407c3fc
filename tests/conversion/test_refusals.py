"""Conversion refuses what cannot be served, in one sentence, and leaves nothing behind."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.checkpoints import change_config, change_tensors, copy_checkpoint, write_transformers_checkpoint
from helpers.sources import move_towers_away, write_adapter
from vllm_videollava.conversion.convert import convert


@pytest.fixture
def copy(checkpoint, tmp_path):
    return copy_checkpoint(checkpoint, tmp_path / "copy")


def assert_refused(source, sentence: str, **options) -> None:
    out = source.parent / "out"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        convert(str(source), out, **options)
    assert not [path.name for path in source.parent.iterdir() if path.name.startswith("out")]


UP = "model.layers.1.mlp.up_proj.weight"
TEMPORAL = "model.video_tower.video_tower.encoder.layers.1.temporal_embedding"


@pytest.mark.parametrize("name", [UP, TEMPORAL, "model.mm_projector.2.bias", "lm_head.weight"])
def test_a_missing_tensor_is_named(copy, name):
    change_tensors(copy, lambda tensors: tensors.pop(name))
    ours = {
        UP: "language_model.model.layers.1.mlp.up_proj.weight",
        TEMPORAL: "video_tower.encoder.layers.1.temporal_embedding",
        "model.mm_projector.2.bias": "multi_modal_projector.layers.2.bias",
        "lm_head.weight": "language_model.lm_head.weight",
    }
    assert_refused(copy, f"The checkpoint lacks tensors that this model needs: {ours[name]}.")


@pytest.mark.parametrize("name", [UP, TEMPORAL, "model.norm.weight"])
def test_a_misshapen_tensor_is_named(copy, name):
    shapes = {}

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        shapes["right"] = list(tensors[name].shape)
        tensors[name] = tensors[name][..., ::2].contiguous()
        shapes["wrong"] = list(tensors[name].shape)

    change_tensors(copy, halve)
    assert_refused(copy, f"The checkpoint's tensor {name} has shape {shapes['wrong']}; it must be {shapes['right']}.")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.7.mlp.up_proj.weight",
        "model.image_tower.image_tower.encoder.layers.0.temporal_attn.q_proj.weight",
        "something.new",
    ],
)
def test_a_surplus_tensor_is_named(copy, name):
    change_tensors(copy, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    assert_refused(copy, f"The checkpoint has tensors that this model does not use: {name}.")


def test_a_quantised_tensor_is_named(copy):
    change_tensors(copy, lambda tensors: tensors.update({UP: tensors[UP].to(torch.int8)}))
    assert_refused(
        copy,
        f"The checkpoint's tensor {UP} is torch.int8; only weights that are not quantised can be converted.",
    )


def test_a_quantised_checkpoint_is_refused(copy):
    change_config(copy, quantization_config={"quant_method": "awq"})
    assert_refused(copy, f"{copy} is quantised; only weights that are not can be converted.")


def test_what_a_dtype_cannot_hold_is_named(copy):
    change_tensors(copy, lambda tensors: tensors[UP].__setitem__((3, 4), 1e5))
    sentence = (
        f"The checkpoint's tensor {UP} has values that are not finite in torch.float16; choose another --dtype, "
        "or repair the checkpoint."
    )
    assert_refused(copy, sentence, dtype="float16")
    assert_refused(copy, sentence, dtype="float16", bits=4)
    convert(str(copy), copy.parent / "other", dtype="bfloat16")


def test_an_adapter_for_other_layers_is_refused(checkpoint, tmp_path):
    source = tmp_path / "lora"
    write_adapter(source, checkpoint)
    change_factors(source, lambda factors: {name.replace("layers.1.", "layers.9."): f for name, f in factors.items()})
    sentence = r"^The adapter changes what its base does not have: .*layers\.9.*_proj\.weight and 3 more\.$"
    with pytest.raises(ValueError, match=sentence):
        convert(str(source), tmp_path / "out")


def test_an_adapter_of_another_shape_is_refused(checkpoint, tmp_path):
    source = tmp_path / "lora"
    write_adapter(source, checkpoint)
    name = f"base_model.model.{UP.removesuffix('.weight')}.lora_B.weight"
    change_factors(source, lambda factors: {**factors, name: factors[name][:200].contiguous()})
    assert_refused(
        source,
        f"The adapter's matrices for {UP} make a weight of shape [200, 128]; the base's has shape [256, 128].",
    )


def change_factors(source, change) -> None:
    path = source / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def test_towers_without_weights_are_named(copy):
    move_towers_away(copy)
    (copy / "LanguageBind_Video_merge" / "pytorch_model.bin").unlink()
    assert_refused(
        copy,
        "The checkpoint has no weights of the video tower, and mm_video_tower is "
        f"'{copy}/LanguageBind_Video_merge', which has none either; it must be a folder or repository with the "
        "tower's weights.",
    )


def test_a_source_that_is_none_is_named(copy, tmp_path):
    assert_refused(
        tmp_path / "none", f"{tmp_path}/none has no config.json; it must be the folder or repository of a checkpoint."
    )
    (copy / "model.safetensors").unlink()
    assert_refused(copy, f"{copy} has no weights; it must have a whole model, an adapter or a projector.")
    (copy / "tokenizer_config.json").unlink()
    assert_refused(copy, f"{copy} has no tokenizer_config.json; copy the files of its tokenizer into it.")
    (copy / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert_refused(copy, f"{copy} is not Video-LLaVA: its model_type is 'llama'.")


def test_a_damaged_file_is_named(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(copy, f"{path} was cut off: 100 bytes are missing; copy or download it again.")


def test_a_file_of_other_things_is_named(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"step": 3}, copy / "pytorch_model.bin")
    assert_refused(
        copy, f"{copy}/pytorch_model.bin has something else than tensors; it must have tensors by their names."
    )


class Program:
    def __reduce__(self):
        return (print, ("a program was run",))


def test_a_file_that_runs_a_program_is_refused(copy, capsys):
    (copy / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Program()}, copy / "pytorch_model.bin")
    assert_refused(copy, f"{copy}/pytorch_model.bin cannot be read; copy or download it again.")
    assert "a program was run" not in capsys.readouterr().out


def test_a_base_for_a_whole_model_is_refused(copy):
    assert_refused(
        copy, f"--base is some/base, but {copy} has no adapter and is not a projector alone.", base="some/base"
    )


@pytest.mark.parametrize("base", ["some/where/else", "some/base", "no such name", "C:\\models\\vicuna"])
def test_a_base_that_is_not_there_is_refused(checkpoint, tmp_path, base):
    source = tmp_path / "lora"
    write_adapter(source, checkpoint)
    assert_refused(
        source,
        f"{source} changes the model {base!r}, which is neither a folder nor a repository within reach; name the base "
        "with --base FOLDER OR REPOSITORY.",
        base=base,
    )


def test_widths_that_cannot_be_cut_into_groups_are_named(copy):
    assert_refused(
        change_config(copy, intermediate_size=200),
        "intermediate_size is 200; for 4 bits it must be a multiple of 128.",
        bits=4,
    )


def test_an_existing_folder_is_not_touched(checkpoint, tmp_path):
    out = tmp_path / "out"
    for make in (out.mkdir, out.touch, lambda: out.symlink_to("nowhere")):
        make()
        with pytest.raises(
            ValueError, match=f"^{re.escape(f'{out} exists already; choose another name or remove it.')}$"
        ):
            convert(str(checkpoint), out)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        out.rmdir() if out.is_dir() else out.unlink()


def test_a_folder_in_no_folder_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path}/none is not a folder; create it first.')}$"):
        convert(str(checkpoint), tmp_path / "none" / "out")


def test_transformers_format_needs_what_transformers_has(copy, tmp_path):
    change_config(copy, mm_projector_type="mlp3x_gelu")
    assert_refused(
        copy,
        "The number of the projector's layers is 3; for transformers' format it must be 2.",
        to_transformers=True,
    )
    change_config(copy, mm_projector_type="mlp2x_gelu")
    change_tensors(
        copy, lambda tensors: [tensors.pop(name) for name in list(tensors) if "image_tower.post_layernorm.w" in name]
    )
    assert_refused(
        copy,
        "The checkpoint lacks tensors that transformers' model has: image_tower.post_layernorm.weight.",
        to_transformers=True,
    )
    tower = copy / "LanguageBind_Image" / "config.json"
    values = json.loads(tower.read_text())
    values["vision_config"]["hidden_act"] = "quick_gelu"
    tower.write_text(json.dumps(values))
    assert_refused(
        copy,
        "hidden_act is quick_gelu in the image tower and gelu in the video tower; for transformers' format they must "
        "be equal.",
        to_transformers=True,
    )


def test_a_checkpoint_of_transformers_is_refused_as_well(checkpoint, tmp_path):
    source = write_transformers_checkpoint(tmp_path / "hf", checkpoint)
    change_tensors(source, lambda tensors: tensors.pop("video_tower.pre_layrnorm.bias"))
    assert_refused(source, "The checkpoint lacks tensors that this model needs: video_tower.pre_layrnorm.bias.")
