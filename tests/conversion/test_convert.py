"""Conversion: every kind of source becomes one whole folder, in the wanted dtype and shards."""

import json
import re
import shutil
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig

from helpers.checkpoints import (
    NAMES,
    change_config,
    change_tensors,
    copy_checkpoint,
    write_transformers_checkpoint,
)
from helpers.loading import model_loading
from helpers.random_checkpoint import TOWER, VIDEO_TOWER, random_weights, write_checkpoint
from helpers.sources import TOWERS, move_towers_away, to_bin, weights, write_adapter, write_projector
from vllm_videollava.checkpoints.tower_config import OFFICIAL_IMAGE_TOWER, OFFICIAL_VIDEO_TOWER
from vllm_videollava.conversion import files
from vllm_videollava.conversion.completeness import is_computed_with, model_shapes
from vllm_videollava.conversion.convert import convert
from vllm_videollava.tensors.merging import canonical


@pytest.fixture
def copy(checkpoint, tmp_path):
    return copy_checkpoint(checkpoint, tmp_path / "copy")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def assert_equal(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, atol=0, rtol=0, msg=name)


def cast(folder, dtype: torch.dtype) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: one.to(dtype) for name, one in tensors.items()}))


def to_indexed_bin(folder) -> None:
    to_bin(folder)
    shards = [path.name for path in folder.glob("*.bin")]
    weight_map = {name: shard for shard in shards for name in torch.load(folder / shard)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def to_old_bin(folder) -> None:
    """As PyTorch before 1.6."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def add_leftovers(folder) -> None:
    """What old versions of transformers stored, and what a trainer leaves."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.image_tower.image_tower.embeddings.position_ids"] = torch.arange(17)[None]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)

    change_tensors(folder, add)
    change_config(folder, _name_or_path="/home/me/base")
    for name in ("trainer_state.json", "training_args.bin", "optimizer.pt"):
        (folder / name).write_text("{}")


LAYOUTS = {
    "safetensors": lambda folder: None,
    "bin": to_bin,
    "bin with an index": to_indexed_bin,
    "bin of old": to_old_bin,
    "towers elsewhere": move_towers_away,
    "leftovers": add_leftovers,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_the_same_folder(checkpoint, copy, out, layout):
    LAYOUTS[layout](copy)
    assert convert(str(copy), out) == []
    assert_equal(weights(out), weights(checkpoint))
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == files
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((checkpoint / "config.json").read_text())


def test_the_folder_is_complete_without_its_source(checkpoint, copy, out):
    expected = AutoConfig.from_pretrained(checkpoint)
    move_towers_away(copy)
    elsewhere = {}
    for field, name in zip(("mm_image_tower", "mm_video_tower"), TOWERS.values(), strict=True):
        elsewhere[field] = str(copy.parent / f"my-{name}")
        (copy / name).rename(elsewhere[field])
    change_config(copy, **elsewhere)
    convert(str(copy), out)
    shutil.rmtree(copy)
    for folder in elsewhere.values():
        shutil.rmtree(folder)
    config = AutoConfig.from_pretrained(out)
    for tower in ("image_config", "video_config"):
        assert getattr(config, tower).to_dict() == getattr(expected, tower).to_dict()
    assert_equal(weights(out), weights(checkpoint))


def test_published_towers_keep_their_names(copy, out, monkeypatch):
    """Their shapes are known; the small ones of this test are put in their place."""
    shapes = {OFFICIAL_IMAGE_TOWER: TOWER, OFFICIAL_VIDEO_TOWER: VIDEO_TOWER}
    monkeypatch.setattr("vllm_videollava.checkpoints.tower_config._OFFICIAL_SHAPES", shapes)
    for name in TOWERS.values():
        shutil.rmtree(copy / name)
    change_config(copy, mm_image_tower=OFFICIAL_IMAGE_TOWER, mm_video_tower="/home/me/LanguageBind_Video_merge")
    convert(str(copy), out)
    config = json.loads((out / "config.json").read_text())
    assert (config["mm_image_tower"], config["mm_video_tower"]) == (OFFICIAL_IMAGE_TOWER, OFFICIAL_VIDEO_TOWER)
    assert not any((out / name).exists() for name in TOWERS.values())


@pytest.mark.parametrize("is_bin", [False, True])
def test_an_adapter_is_merged(checkpoint, tmp_path, out, is_bin):
    source = tmp_path / "lora"
    changed = write_adapter(source, checkpoint, is_bin=is_bin)
    convert(str(source), out)
    ours, expected = weights(out), weights(checkpoint) | changed
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-6)
    assert not {path.name for path in out.iterdir()} & {"trainer_state.json", "adapter_config.json"}
    assert (out / "tokenizer.model").read_bytes() == (checkpoint / "tokenizer.model").read_bytes()
    assert (out / "generation_config.json").exists()
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((checkpoint / "config.json").read_text())


def test_the_merge_is_pefts_own(checkpoint, tmp_path, out):
    """An adapter that PEFT has made and written; PEFT merges it too."""
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    config = AutoConfig.from_pretrained(checkpoint).text_config
    base = {name: tensor for name, tensor in weights(checkpoint).items() if not re.search("tower|mm_projector", name)}
    torch.manual_seed(3)
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(base)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = peft.LoraConfig(
        r=8,
        lora_alpha=24,
        target_modules=targets,
        rank_pattern={"layers.1.self_attn.q_proj": 4},
        alpha_pattern={"layers.0.mlp.up_proj": 5},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(llama, adapter)
    source = tmp_path / "lora"
    write_adapter(source, checkpoint)
    trainables = torch.load(source / "non_lora_trainables.bin")
    model.save_pretrained(source)
    convert(str(source), out, base=str(checkpoint))
    merged = model.merge_and_unload().state_dict()
    ours = weights(out)
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-6)
        assert name in ("model.embed_tokens.weight", "lm_head.weight") or "norm" in name or (tensor != base[name]).any()
    for name, tensor in trainables.items():
        torch.testing.assert_close(ours[name.removeprefix("base_model.model.")], tensor, atol=0, rtol=0)


def test_a_projector_is_put_into_its_base(checkpoint, tmp_path, out):
    source = tmp_path / "projector"
    projector = write_projector(source, checkpoint)
    convert(str(source), out)
    assert_equal(weights(out), weights(checkpoint) | projector)


def test_the_base_can_be_named(checkpoint, tmp_path, out):
    write_adapter(tmp_path / "lora", checkpoint, names_base=False)
    sentence = f"{tmp_path / 'lora'} does not name the model that it changes; name the base with --base FOLDER OR "
    with pytest.raises(ValueError, match=re.escape(sentence + "REPOSITORY.")):
        convert(str(tmp_path / "lora"), out)
    convert(str(tmp_path / "lora"), out, base=str(checkpoint))
    assert weights(out).keys() == weights(checkpoint).keys()


@pytest.mark.parametrize("to_transformers", [False, True])
@pytest.mark.parametrize("names", NAMES)
def test_transformers_format_stays(checkpoint, tmp_path, out, names, to_transformers):
    source = write_transformers_checkpoint(tmp_path / "hf", checkpoint, names)
    (source / "preprocessor_config.json").write_text("{}")
    assert convert(str(source), out, to_transformers=to_transformers) == []
    oldest = write_transformers_checkpoint(tmp_path / "oldest", checkpoint, "before 4.52")
    assert_equal(weights(out), weights(oldest))
    assert (out / "preprocessor_config.json").exists()
    expected = json.loads((source / "config.json").read_text())
    expected["torch_dtype"] = expected.pop("dtype")
    assert json.loads((out / "config.json").read_text()) == expected


def test_a_repository_is_converted(checkpoint, tmp_path, out, monkeypatch):
    """It lies in the cache of downloaded repositories, and its towers are the published ones."""
    shapes = {OFFICIAL_IMAGE_TOWER: TOWER, OFFICIAL_VIDEO_TOWER: VIDEO_TOWER}
    monkeypatch.setattr("vllm_videollava.checkpoints.tower_config._OFFICIAL_SHAPES", shapes)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--mine"
    copy_checkpoint(checkpoint, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    convert("me/mine", out)
    assert_equal(weights(out), weights(checkpoint))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("of_source", ["float32", "bfloat16"])
def test_dtypes(checkpoint, copy, out, of_source, dtype):
    cast(copy, getattr(torch, of_source))
    change_config(copy, torch_dtype=of_source)
    convert(str(copy), out, dtype=dtype)
    expected = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights(copy).items()}
    assert_equal(weights(out), expected)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("written", [True, False])
def test_the_dtype_is_that_of_the_source(checkpoint, copy, out, written):
    cast(copy, torch.bfloat16)
    change_config(copy, torch_dtype="bfloat16" if written else None)
    convert(str(copy), out)
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(out).dtype == torch.bfloat16


def test_a_merged_weight_is_rounded_once(checkpoint, copy, tmp_path, out):
    cast(copy, torch.float16)
    changed = write_adapter(tmp_path / "lora", copy)
    convert(str(tmp_path / "lora"), out, dtype="bfloat16")
    ours = weights(out)
    for name, tensor in changed.items():
        assert (ours[name] != tensor.bfloat16()).float().mean() < 0.001


@pytest.mark.parametrize("mapped", [1 << 28, 1])
def test_shards(checkpoint, out, monkeypatch, mapped):
    monkeypatch.setattr(files, "MOST_MAPPED", mapped)
    convert(str(checkpoint), out, shard_size="500KB")
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 3
    assert [path.name for path in shards] == [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for path in shards:
        tensors = load_file(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 500_000
        assert {name for name, shard in index["weight_map"].items() if shard == path.name} == tensors.keys()
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    expected = weights(checkpoint)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert_equal(weights(out), expected)


def test_files_can_be_read_by_those_who_can_read_others(checkpoint, out):
    convert(str(checkpoint), out)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()}
    (out / "other").write_text("")
    assert modes == {stat.S_IMODE((out / "other").stat().st_mode)}


EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("stored", [[EMBEDDINGS], [HEAD], [EMBEDDINGS, HEAD]])
def test_tied_embeddings_are_written_once(copy, out, stored):
    embeddings = weights(copy)[EMBEDDINGS]

    def tie(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[EMBEDDINGS], tensors[HEAD]
        tensors.update({name: embeddings.clone() for name in stored})

    change_tensors(change_config(copy, tie_word_embeddings=True), tie)
    convert(str(copy), out)
    ours = weights(out)
    assert HEAD not in ours
    torch.testing.assert_close(ours[EMBEDDINGS], embeddings, atol=0, rtol=0)


def test_a_head_that_differs_is_refused(copy, out):
    change_config(copy, tie_word_embeddings=True)
    sentence = (
        "The checkpoint's tensor lm_head.weight differs from the embeddings, "
        "though tie_word_embeddings is true in its config.json."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        convert(str(copy), out)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    with model_loading(tmp_path_factory.mktemp("rendezvous") / "file") as load:
        yield load


@pytest.mark.parametrize("values", [{}, {"mm_projector_type": "linear"}, {"mm_projector_type": "mlp3x_gelu"}])
def test_the_shapes_are_those_that_serving_checks(load, tmp_path, values):
    folder = write_checkpoint(tmp_path / "checkpoint", **values)
    loader = load(folder)._weights_loader
    config = AutoConfig.from_pretrained(folder)
    shapes = model_shapes(config)
    assert {name: shape for name, shape in shapes.items() if is_computed_with(name, config)} == loader._expected
    stored = random_weights(json.loads((folder / "config.json").read_text()), seed=0)
    assert shapes == {canonical(name): tensor.shape for name, tensor in stored.items()}


def test_the_shapes_of_transformers_format(load, checkpoint, tmp_path):
    folder = write_transformers_checkpoint(tmp_path / "hf", checkpoint)
    loader = load(folder)._weights_loader
    config = AutoConfig.from_pretrained(folder)
    shapes = model_shapes(config)
    assert {name: shape for name, shape in shapes.items() if is_computed_with(name, config)} == loader._expected
    assert shapes == {canonical(name): tensor.shape for name, tensor in weights(folder).items()}
