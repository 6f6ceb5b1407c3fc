"""Finds a checkpoint's weight files, and checks each without reading its tensors."""

import json
import os
import re
import struct
import zipfile
from functools import cache
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from transformers.utils import cached_file

from vllm_videollava.checkpoints.adapter_config import read_json_object

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
WHOLE_MODEL = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)(\.index\.json)?")


def list_files(checkpoint: str) -> frozenset[str]:
    """Return the names of a folder's or a repository's files; there are none if it is neither, or out of reach.

    If the hub is out of reach, a repository's files are those that were downloaded.

    Raises:
        ValueError: the folder must not be read.
    """
    try:
        if os.path.isdir(checkpoint):
            return frozenset(os.listdir(checkpoint))
    except OSError as error:
        raise ValueError(f"{checkpoint} cannot be read: {error.strerror}.") from error
    try:
        return files_of_repository(checkpoint)
    # The hub's client raises errors of several libraries.
    except Exception:
        return _downloaded_files(checkpoint)


@cache
def files_of_repository(repository: str) -> frozenset[str]:
    """Return the names of a repository's files.

    Raises:
        Exception: there is no such repository, or the hub is out of reach.
    """
    return frozenset(list_repo_files(repository))


def _downloaded_files(repository: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(snapshot_download(repository, local_files_only=True)))
    except (OSError, ValueError):
        return frozenset()


def find_file(checkpoint: str, name: str) -> Path | None:
    """Return the path of a file of a folder or of a repository, which may have to be downloaded, or None."""
    if name not in list_files(checkpoint):
        return None
    if os.path.isdir(checkpoint):
        return Path(checkpoint, name)
    path = cached_file(
        checkpoint,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(path) if path else None


def has_whole_model(checkpoint: str) -> bool:
    """Tell whether a folder or repository has files of a whole model."""
    return any(WHOLE_MODEL.fullmatch(name) for name in list_files(checkpoint))


def whole_model_files(checkpoint: str) -> list[Path]:
    """Return the files of a whole model, in which a repository's may be downloaded, or none.

    Where vLLM could choose, these are the files that serving reads.

    Raises:
        ValueError: an index is damaged, or a file that it names is missing.
    """
    for index_name, single_name in zip(INDEXES, SINGLE_FILES, strict=True):
        if index := find_file(checkpoint, index_name):
            return _find_shards(checkpoint, index)
        if single := find_file(checkpoint, single_name):
            return [single]
    if not os.path.isdir(checkpoint):
        return []
    shards = [path for path in sorted(Path(checkpoint).iterdir()) if WHOLE_MODEL.fullmatch(path.name)]
    return [path for path in shards if path.suffix == shards[0].suffix]


def _find_shards(checkpoint: str, index: Path) -> list[Path]:
    shards = []
    for name in sorted(_named_by(index)):
        if (shard := find_file(checkpoint, name)) is None:
            raise ValueError(f"{index} names {name}, which is missing from the folder.")
        shards.append(shard)
    return shards


def whole_model_pattern(folder: Path) -> str | None:
    """Return the pattern of a whole model's files, where vLLM would read other files of the folder as well.

    vLLM reads the files that an index of safetensors names, but else every
    file with the right suffix.
    """
    if (folder / INDEXES[0]).exists():
        return None
    if (folder / "model.safetensors").exists():
        return "model.safetensors"
    if (index := folder / INDEXES[1]).exists():
        names = sorted(_named_by(index))
        return re.sub(r"-\d+-of-", "-*-of-", names[0]) if names else None
    return "pytorch_model.bin" if (folder / "pytorch_model.bin").exists() else None


def check_whole_model(folder: Path) -> None:
    """Check the files of a whole model, if the folder has one.

    Raises:
        ValueError: an index or a file is damaged, or a file is missing.
    """
    for file in whole_model_files(str(folder)):
        check_file(file)


def _named_by(index: Path) -> set[str]:
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()) or not names:
        raise ValueError(f"{index} has no weight_map of tensors to files.")
    return set(names.values())


def check_file(path: Path) -> None:
    """Check that a file of weights is whole.

    Raises:
        ValueError: the file is damaged, or of another kind than its suffix says.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")
    find_damage = _find_damage_of_safetensors if path.suffix == ".safetensors" else _find_damage_of_bin
    try:
        problem = find_damage(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if problem:
        raise ValueError(f"{path} {problem}; copy or download it again.")


def _find_damage_of_safetensors(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            return f"has {size} bytes, which are too few for safetensors"
        (length,) = struct.unpack("<Q", head)
        if length > size - 8:
            return "is not a file of safetensors, or was cut off in its header"
        try:
            tensors = json.loads(file.read(length))
            ends = [value["data_offsets"][1] for name, value in tensors.items() if name != "__metadata__"]
            missing = 8 + length + max(ends, default=0) - size
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
            return "is not a file of safetensors"
    return f"was cut off: {missing} bytes are missing" if missing > 0 else None


def _find_damage_of_bin(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return "is empty"
    # PyTorch wrote pickles before 1.6; where they end cannot be told without reading them.
    if head == b"\x80\x02":
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is not a file of PyTorch, or was cut off"
    return None if any(name.endswith("data.pkl") for name in names) else "is not a file of PyTorch"
