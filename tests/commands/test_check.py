"""`check` tells what a folder consists of, what it lacks, and how much memory it takes."""

import argparse
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from vllm.platforms import current_platform

from helpers.checkpoints import change_tensors, copy_checkpoint
from helpers.fine_tunes import change_adapter_config, write_lora, write_projector
from helpers.sources import move_towers_away
from vllm_videollava.checkpoints.tower_config import read_tower_config
from vllm_videollava.commands import check, serve


@pytest.fixture
def tell(capsys):
    """Run the command, and return its exit status and what it prints of the model."""

    def tell(model) -> tuple[int, str]:
        status = check.run(argparse.Namespace(model=str(model)))
        return status, capsys.readouterr().out.partition("model    ")[2]

    return tell


def test_a_lora(tell, checkpoint, tmp_path):
    status, told = tell(write_lora(tmp_path, checkpoint, r=4).folder)
    assert status == 0
    assert "kind: LoRA of rank 4 (adapter_model.safetensors)" in told
    assert f"base: {checkpoint}" in told
    assert "projector: non_lora_trainables.bin" in told
    assert "image tower: beside the other weights" in told


def test_a_projector(tell, checkpoint, tmp_path):
    status, told = tell(write_projector(tmp_path, checkpoint).folder)
    assert status == 0
    assert "kind: projector" in told
    assert f"base: {checkpoint}" in told
    assert "projector: mm_projector.bin" in told


def test_a_tower_of_its_own(tell, checkpoint, tmp_path):
    folder = copy_checkpoint(checkpoint, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    own = {name: tensors.pop(name) for name in list(tensors) if "video_tower" in name}
    own = {name.replace("model.video_tower.video_tower.", "vision_model."): tensor for name, tensor in own.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(own, folder / "LanguageBind_Video_merge" / "model.safetensors", metadata={"format": "pt"})
    status, told = tell(folder)
    assert status == 0
    assert f"video tower: {folder / 'LanguageBind_Video_merge'}" in told
    assert "image tower: beside the other weights" in told


@pytest.fixture
def no_downloads(monkeypatch):
    """Let the hub have every repository, and fail whatever would read a file of one."""
    monkeypatch.setattr("vllm_videollava.checkpoints.weight_files.files_of_repository", lambda _: {"model.safetensors"})
    monkeypatch.setattr("vllm_videollava.checkpoints.weight_files.cached_file", None)


def test_a_base_on_the_hub_is_not_downloaded(tell, checkpoint, tmp_path, no_downloads):
    folder = write_lora(tmp_path, checkpoint).folder
    for name in ("LanguageBind_Image", "LanguageBind_Video_merge"):
        shutil.copytree(checkpoint / name, folder / name)
    status, told = tell(change_adapter_config(folder, base_model_name_or_path="me/base"))
    assert status == 0
    assert "base: me/base" in told


def test_towers_on_the_hub_are_not_downloaded(tell, checkpoint, tmp_path, no_downloads, monkeypatch):
    folder = copy_checkpoint(checkpoint, tmp_path / "copy")
    move_towers_away(folder)
    monkeypatch.setattr(
        "vllm_videollava.checkpoints.config.locate_tower", lambda name, folders: f"LanguageBind/{Path(name).name}"
    )
    monkeypatch.setattr(
        "vllm_videollava.checkpoints.config.read_tower_config",
        lambda field, location: read_tower_config(field, str(folder / Path(location).name)),
    )
    status, told = tell(folder)
    assert status == 0
    assert "image tower: LanguageBind/LanguageBind_Image, which serving downloads; no tensors were checked" in told


def test_what_a_checkpoint_lacks(tell, checkpoint, tmp_path):
    folder = copy_checkpoint(checkpoint, tmp_path / "copy")
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    status, told = tell(folder)
    assert status == 1
    assert "lacks tensors that this model needs: language_model.model.norm.weight." in told


def test_the_middle_of_a_training(tell, checkpoint, tmp_path):
    folder = write_lora(tmp_path, checkpoint).folder
    for name in ("config.json", "non_lora_trainables.bin"):
        (folder / name).unlink()
    status, told = tell(folder)
    assert status == 1
    assert told.count("\n") == 1
    assert "copy it and non_lora_trainables.bin from the folder where the training ended." in told
    assert serve.run(argparse.Namespace(handed_on=[str(folder)])) in told


def test_a_folder_of_something_else(tell, tmp_path):
    status, told = tell(tmp_path)
    assert (status, told) == (1, f"{tmp_path}: {tmp_path} has no config.json, so it is not a checkpoint.\n")


def test_memory(tell, checkpoint, monkeypatch):
    monkeypatch.setattr(current_platform, "is_cuda_alike", lambda: True)
    monkeypatch.setattr(current_platform, "get_device_total_memory", lambda: 10**9)
    _, told = tell(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    unused = re.compile(r".*_tower.*(layers\.2\.|post_layernorm).*")
    sizes = {name: tensor.numel() for name, tensor in tensors.items() if not unused.fullmatch(name)}
    linear = sum(size for name, size in sizes.items() if re.match(r"model\.layers\..*_proj\.weight", name))
    rest = sum(sizes.values()) - linear
    weights = [2 * (linear + rest), linear + 2 * rest, linear / 2 + linear / 64 + 2 * rest]
    gigabytes = ", ".join(f"{w / 1e9:.3g} GB with {bits} bits" for w, bits in zip(weights, (16, 8, 4), strict=True))
    assert f"weights: {gigabytes}\n" in told
    # Keys and values of 2 layers, 128 wide, for 8 frames of 17 tokens, in 16 bits.
    video = 2 * 2 * 128 * 2 * 8 * 17
    assert f"a video in the cache: {video / 1e9:.3g} GB" in told
    assert f"at most: {int((0.9e9 - weights[0]) / video)} with 16 bits" in told


def test_a_folder_without_weights(tell, checkpoint, tmp_path):
    folder = copy_checkpoint(checkpoint, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    status, told = tell(folder)
    assert (status, "has no weights" in told) == (1, True)
