"""Folders of fine-tunes are recognised, and a malformed one is refused with a sentence that names the file."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import vllm_videollava
from helpers.checkpoints import change_config, copy_checkpoint
from helpers.fine_tunes import change_adapter_config, write_lora, write_projector
from vllm_videollava.checkpoints.config import check_config
from vllm_videollava.checkpoints.tower_config import locate_tower
from vllm_videollava.checkpoints.weight_files import files_of_repository


@pytest.fixture(autouse=True, scope="module")
def _registered():
    vllm_videollava.register()


def read_config(folder: Path, **overrides):
    """Read and check a config as an engine does."""
    config = AutoConfig.from_pretrained(folder)
    config.update(overrides)
    check_config(config, str(folder))
    return config


@pytest.fixture
def lora(checkpoint, tmp_path) -> Path:
    return write_lora(tmp_path / "tuned", checkpoint).folder


@pytest.fixture
def projector(checkpoint, tmp_path) -> Path:
    return write_projector(tmp_path / "tuned", checkpoint).folder


@pytest.fixture
def whole(checkpoint, tmp_path) -> Path:
    return copy_checkpoint(checkpoint, tmp_path / "whole")


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, data=b""):
    return lambda folder: (folder / name).write_bytes(data)


def cut(name):
    def cut_last_bytes(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-100])

    return cut_last_bytes


def adapter(**values):
    return lambda folder: change_adapter_config(folder, **values)


def replace_by_folder(name):
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace


def to_shards(folder: Path) -> Path:
    """Split the weights into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for shard, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        file = f"model-{shard:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def shards(change):
    return lambda folder: change(to_shards(folder))


def to_bin(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


CONFIG, ADAPTER, TRAINABLES = "adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
MALFORMED = {
    "no adapter config": ("lora", remove(CONFIG), f"has {ADAPTER}, but {CONFIG} is missing"),
    "no adapter": ("lora", remove(ADAPTER), f"has {CONFIG}, but {ADAPTER} or adapter_model.bin is missing"),
    "no trainables": ("lora", remove(TRAINABLES), f"has an adapter, but {TRAINABLES} is missing"),
    "trainables alone": (
        "lora",
        lambda folder: (remove(CONFIG)(folder), remove(ADAPTER)(folder)),
        f"has {TRAINABLES}, but {CONFIG} and the adapter are missing",
    ),
    "config that is no JSON": ("lora", write(CONFIG, b"{"), f"{CONFIG} is not a file of JSON"),
    "config that is no text": ("lora", write(CONFIG, b"\xff\xfe\x00"), f"{CONFIG} is not a file of JSON"),
    "config that is no object": ("lora", write(CONFIG, b"[1]"), f"{CONFIG} has [1]; it must have a JSON object"),
    "config that is a folder": ("lora", replace_by_folder(CONFIG), f"{CONFIG} cannot be read"),
    "prompt tuning": ("lora", adapter(peft_type="PROMPT_TUNING"), "peft_type is 'PROMPT_TUNING'; it must be 'LORA'"),
    "no type": ("lora", adapter(peft_type=None), "peft_type is None; it must be 'LORA'"),
    "DoRA": ("lora", adapter(use_dora=True), f"{CONFIG}: use_dora is True; adapters that use it are not supported"),
    "layer replication": ("lora", adapter(layer_replication=[[0, 2]]), "layer_replication is [[...]]; adapters"),
    "trained tokens": ("lora", adapter(trainable_token_indices=[1]), "trainable_token_indices is [1]; adapters"),
    "bias of factors": ("lora", adapter(lora_bias=True), "lora_bias is True; adapters"),
    "field of the future": ("lora", adapter(use_future=3), f"{CONFIG}: use_future is 3; adapters"),
    "PiSSA": (
        "lora",
        adapter(init_lora_weights="pissa_niter_4"),
        "init_lora_weights is 'pissa_niter_4', which changes",
    ),
    "rank of zero": ("lora", adapter(r=0), f"{CONFIG}: r is 0; it must be a positive whole number"),
    "rank that is no number": ("lora", adapter(r="8"), "r is '8'; it must be a positive whole number"),
    "alpha that is no number": ("lora", adapter(lora_alpha=None), "lora_alpha is None; it must be a positive number"),
    "pattern that is a list": ("lora", adapter(rank_pattern=["q"]), "rank_pattern is ['q']; it must map names"),
    "rank in a pattern": ("lora", adapter(rank_pattern={"q": -1}), "rank_pattern['q'] is -1; it must be a positive"),
    "pattern that is none": ("lora", adapter(alpha_pattern={"(": 1}), "alpha_pattern has the key '('; it must be a"),
    "base of another machine": (
        "lora",
        adapter(base_model_name_or_path="/data/alice/vicuna"),
        "changes the model '/data/alice/vicuna', which is neither a folder nor a repository within reach; name",
    ),
    "base without weights": (
        "lora",
        adapter(base_model_name_or_path="."),
        "which does not have a whole model; name the base with --hf-overrides",
    ),
    "no base": (
        "lora",
        lambda folder: change_config(change_adapter_config(folder, base_model_name_or_path=None), _name_or_path=None),
        "does not name the model that it changes; name the base with --hf-overrides",
    ),
    "adapter that was cut off": ("lora", cut(ADAPTER), f"{ADAPTER} was cut off: 100 bytes are missing"),
    "empty adapter": ("lora", write(ADAPTER), f"{ADAPTER} has 0 bytes, which are too few for safetensors"),
    "adapter that is no safetensors": (
        "lora",
        write(ADAPTER, b"<html>" * 9),
        f"{ADAPTER} is not a file of safetensors",
    ),
    "adapter with a wrong header": (
        "lora",
        write(ADAPTER, struct.pack("<Q", 4) + b"[{}]"),
        f"{ADAPTER} is not a file of safetensors",
    ),
    "trainables that were cut off": ("lora", cut(TRAINABLES), f"{TRAINABLES} is not a file of PyTorch, or was cut off"),
    "empty trainables": ("lora", write(TRAINABLES), f"{TRAINABLES} is empty"),
    "trainables that are a folder": ("lora", replace_by_folder(TRAINABLES), f"{TRAINABLES} is not a file"),
    "projector that was cut off": ("projector", cut("mm_projector.bin"), "mm_projector.bin is not a file of PyTorch"),
    "projector of Git LFS": (
        "projector",
        write("mm_projector.bin", b"version https://git-lfs.github.com/spec/v1\n"),
        "mm_projector.bin is not a file of PyTorch",
    ),
    "projector without a base": (
        "projector",
        lambda folder: change_config(folder, _name_or_path="./checkpoints/vicuna"),
        "changes the model './checkpoints/vicuna', which is neither a folder nor a repository within reach",
    ),
    "adapter beside a whole model": (
        "lora",
        lambda folder: write("model.safetensors")(folder),
        f"has an adapter ({ADAPTER}) and a whole model; move one of them to another folder",
    ),
    "shard that is missing": ("whole", shards(remove(SHARD)), f"{INDEX} names {SHARD}, which is missing"),
    "shard that was cut off": ("whole", shards(cut(SHARD)), f"{SHARD} was cut off: 100 bytes are missing"),
    "index that is no JSON": ("whole", shards(write(INDEX, b"{")), f"{INDEX} is not a file of JSON"),
    "index without a map": ("whole", shards(write(INDEX, b"{}")), f"{INDEX} has no weight_map of tensors to files"),
    "model that was cut off": ("whole", cut("model.safetensors"), "model.safetensors was cut off"),
    "model in a broken archive": (
        "whole",
        lambda folder: cut("pytorch_model.bin")(to_bin(folder)),
        "pytorch_model.bin is not a file of PyTorch, or was cut off",
    ),
    "tower that is missing": (
        "whole",
        lambda folder: shutil.rmtree(folder / "LanguageBind_Image"),
        "they must be equal",
    ),
    "tower of another machine": (
        "whole",
        lambda folder: change_config(folder, mm_image_tower="/data/alice/my_tower"),
        "mm_image_tower is '/data/alice/my_tower', whose config.json cannot be read",
    ),
}


@pytest.mark.parametrize(("kind", "damage", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_folder_is_refused_by_the_file(request, kind, damage, sentence):
    folder = request.getfixturevalue(kind)
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        read_config(folder)
    assert str(error.value).endswith(".")
    assert str(error.value).count(". ") == 0


def test_what_belongs_to_training_is_no_hindrance(lora):
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "README.md"):
        (lora / name).write_bytes(b"")
    (lora / "checkpoint-10").mkdir()
    assert read_config(lora).base_model


@pytest.mark.parametrize("kind", ["lora", "projector"])
def test_tokenizer_and_generation_config_come_from_the_base(request, kind, checkpoint):
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=str(request.getfixturevalue(kind))).create_model_config()
    assert (config.tokenizer, config.generation_config) == (str(checkpoint), str(checkpoint))


def test_a_tokenizer_of_its_own_or_of_a_flag_is_used(lora, checkpoint, whole):
    from vllm.engine.arg_utils import EngineArgs

    assert EngineArgs(model=str(lora), tokenizer=str(whole)).create_model_config().tokenizer == str(whole)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(checkpoint / name, lora)
    assert EngineArgs(model=str(lora)).create_model_config().tokenizer == str(lora)


def test_what_held_the_base_in_4_bits_while_it_was_trained_does_not_quantise_it(lora):
    """The original's training with --bits 4 leaves this in config.json."""
    change_config(lora, quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})
    assert not hasattr(read_config(lora), "quantization_config")


@pytest.fixture
def repository(lora, tmp_path, monkeypatch) -> str:
    """A LoRA's repository, in the cache of those that have been downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "models--me--lora"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123456789012345678901234567890123456789")
    shutil.copytree(lora, cached / "snapshots" / "0123456789012345678901234567890123456789")
    files_of_repository.cache_clear()
    return "me/lora"


def test_a_repository_is_served_without_a_revision_only(repository):
    from vllm.config import ModelConfig

    ModelConfig(model=repository)
    with pytest.raises(ValueError, match=r"--revision is 0123456.*, and only its main revision can be served"):
        ModelConfig(model=repository, revision="0123456789012345678901234567890123456789")


def test_a_format_of_files_that_leaves_some_out_is_refused(lora):
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs(str(lora)).create_engine_config()
    with pytest.raises(ValueError, match=r"--load-format is safetensors, but .* is a fine-tune"):
        EngineArgs(str(lora), load_format="safetensors").create_engine_config()


@pytest.mark.parametrize("base", ["checkpoints/vicuna-7b", "vicuna 7b", "C:\\models\\vicuna"])
def test_a_base_that_is_not_there_is_said_before_the_tokenizer_is_missed(lora, base):
    from vllm.engine.arg_utils import EngineArgs

    change_adapter_config(lora, base_model_name_or_path=base)
    with pytest.raises(ValueError, match="which is neither a folder nor a repository within reach; name the base with"):
        EngineArgs(str(lora)).create_engine_config()


def test_a_base_for_a_whole_model_has_no_effect_and_is_refused(whole, checkpoint):
    with pytest.raises(ValueError, match=r"hf_overrides has base_model, but .* has a whole model; leave it out"):
        read_config(whole, base_model=str(checkpoint))


TOWERS = {
    "the trainer's path": "/data/alice/LanguageBind_Image",
    "below the home folder": "~/LanguageBind_Image",
    "below the folder of the training": "pretrained/LanguageBind_Image",
    "relative": "./cache_dir/LanguageBind_Image",
    "the trainer's cache": "/root/.cache/hub/models--LanguageBind--LanguageBind_Image/snapshots/0123456789abcdef",
}


@pytest.mark.parametrize("path", TOWERS.values(), ids=TOWERS)
def test_a_towers_path_of_another_machine_is_that_of_the_published_tower(path):
    assert locate_tower(path, []) == "LanguageBind/LanguageBind_Image"


@pytest.mark.parametrize("path", [path for path in TOWERS.values() if "models--" not in path])
def test_a_towers_path_of_another_machine_is_that_of_the_folder_beside_the_weights(whole, path):
    config = read_config(change_config(whole, mm_image_tower=path))
    assert config.image_tower_source == str(whole / "LanguageBind_Image")


def test_a_repository_that_has_a_towers_last_name_is_left_alone(monkeypatch):
    monkeypatch.setattr("vllm_videollava.checkpoints.tower_config.list_files", lambda name: {"config.json"})
    assert locate_tower("somebody/LanguageBind_Image", []) == "somebody/LanguageBind_Image"


def test_towers_are_named_by_a_flag(whole, checkpoint):
    change_config(whole, mm_image_tower="/data/alice/unknown")
    config = read_config(whole, mm_image_tower=str(checkpoint / "LanguageBind_Image"))
    assert config.image_tower_source == str(checkpoint / "LanguageBind_Image")
    assert config.tower_fault is None
