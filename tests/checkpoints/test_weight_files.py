"""Which files are a model's weights."""

import pytest

from vllm_videollava.checkpoints.weight_files import (
    INDEXES,
    SINGLE_FILES,
    files_of_repository,
    find_file,
    has_whole_model,
    whole_model_files,
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a function that puts empty files into the cache of downloaded repositories, as those of one of them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    files_of_repository.cache_clear()

    def write(*names: str) -> str:
        folder = tmp_path / "models--me--mine"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc").mkdir(parents=True)
        for name in names:
            (folder / "snapshots" / "abc" / name).touch()
        return "me/mine"

    return write


@pytest.mark.parametrize("name", [*INDEXES, *SINGLE_FILES])
def test_a_repository_with_a_whole_model(repository, name):
    assert has_whole_model(repository(name, "config.json"))


def test_a_repository_without(repository):
    name = repository("config.json", "mm_projector.bin", "adapter_model.safetensors")
    assert find_file(name, "mm_projector.bin")
    assert not has_whole_model(name)
    assert whole_model_files(name) == []


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN_SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "mm_projector.bin"], ["pytorch_model.bin"]),
        ([*BIN_SHARDS, *SHARDS, "other.safetensors"], SHARDS),
        ([*BIN_SHARDS, "optimizer.bin"], BIN_SHARDS),
        (["config.json"], []),
    ],
)
def test_files_of_a_folder(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    assert whole_model_files(str(tmp_path)) == [tmp_path / name for name in expected]


@pytest.mark.parametrize(("index", "shards"), [(INDEXES[0], SHARDS), (INDEXES[1], BIN_SHARDS)])
def test_an_index_names_the_files(tmp_path, index, shards):
    for name in [*SHARDS, *BIN_SHARDS, "model-00003-of-00003.safetensors"]:
        (tmp_path / name).touch()
    weight_map = ", ".join(f'"tensor {number}": "{name}"' for number, name in enumerate(shards))
    (tmp_path / index).write_text(f'{{"weight_map": {{{weight_map}}}}}')
    assert whole_model_files(str(tmp_path)) == [tmp_path / name for name in shards]
