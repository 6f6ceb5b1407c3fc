"""Checks a LoRA adapter before the engine loads it beside the served checkpoint."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch
from vllm.config import VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import get_adapter_absolute_path, is_in_target_modules, parse_fine_tuned_lora_name

from vllm_videollava.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterConfig
from vllm_videollava.checkpoints.fine_tune import (
    ADAPTER_FILES,
    TRAINABLES,
    FineTune,
    find_fine_tune,
    lacks_trainables,
    locate_base,
    read_adapter,
)
from vllm_videollava.checkpoints.weight_files import check_file, find_file, whole_model_files
from vllm_videollava.compat import swaps_patterns
from vllm_videollava.decoding.errors import shorten
from vllm_videollava.tensors.file import map_tensors
from vllm_videollava.tensors.merging import canonical, join_names, split_own
from vllm_videollava.tensors.names import EMBEDDINGS, HEAD

_PROJECTOR = "multi_modal_projector."
_INSTEAD = "serve the folder itself"


class AdapterGate:
    """Lets adapters through that change only what vLLM swaps for each request, and that fit the served model."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._model_config, self._lora_config = vllm_config.model_config, vllm_config.lora_config
        self._folders: dict[str, Path] = {}
        self._passed: dict[Path, list[tuple]] = {}

    def check(self, path: str, *, again: bool = False) -> None:
        """Check an adapter, unless its files are those of the last check.

        Args:
            path: its folder or repository.
            again: whether a repository may have changed.

        Raises:
            ValueError: a file is missing or damaged, the adapter does not fit the served model or is of an unsupported
                kind, or it was trained together with another projector than the served one.
        """
        if self._lora_config is None:
            return
        if again or path not in self._folders:
            self._folders[path] = _find_folder(path)
        folder = self._folders[path]
        if self._passed.get(folder) == (stamps := _stamps(folder)):
            return
        try:
            self._check_folder(folder)
        except ValueError as error:
            # Clients know an adapter by its name.
            reason = str(error).replace(f"{folder}/", "").replace(str(folder), "the folder")
            raise ValueError(f"The adapter {shorten(Path(path).name)} cannot be loaded: {reason}") from error
        self._passed[folder] = stamps

    def _check_folder(self, folder: Path) -> None:
        config, name = read_adapter(str(folder))
        check_file(folder / name)
        self._check_config(folder, config)
        self._check_base(folder, config)
        has_originals_names = self._check_tensors(folder / name, config)
        self._check_trainables(folder, has_originals_names)

    def _check_config(self, folder: Path, config: AdapterConfig) -> None:
        rank = max(config.r, *config.rank_pattern.values(), 0)
        if rank > self._lora_config.max_lora_rank:
            enough = [most for most in get_args(MaxLoRARanks) if most >= rank]
            flag = f"start the server with --max-lora-rank {enough[0]}, or " if enough else ""
            raise ValueError(f"{folder} has rank {rank}; {flag}{_INSTEAD}.")
        if (config.rank_pattern or config.alpha_pattern) and not swaps_patterns():
            raise ValueError(f"{folder} has a rank_pattern or alpha_pattern, which this vLLM ignores; {_INSTEAD}.")
        try:
            PEFTHelper.from_local_dir(str(folder), None).validate_legal(self._lora_config)
        except (TypeError, ValueError) as error:
            reason = str(error).split(". ")[0].rstrip(".")
            raise ValueError(f"{folder / ADAPTER_CONFIG} is refused by vLLM ({reason}); {_INSTEAD}.") from error

    def _check_base(self, folder: Path, config: AdapterConfig) -> None:
        """Check that an adapter is not put on top of one that the served model has already."""
        fine_tune = self._served_fine_tune()
        base = config.base and locate_base(config.base, str(folder))
        if fine_tune and fine_tune.adapter and (not base or not _are_the_same(base, self._model_config.model)):
            raise ValueError(
                f"{folder} was not trained on the served model, which has an adapter in it; "
                f"{_INSTEAD}, or serve the model that it was trained on."
            )

    def _served_fine_tune(self) -> FineTune | None:
        return find_fine_tune(self._model_config.model, self._model_config.hf_config.original_values or {})

    def _check_tensors(self, file: Path, config: AdapterConfig) -> bool:
        """Check an adapter's matrices, and return whether they have the original's names."""
        tensors = map_tensors(file)
        try:
            replacements, factors = split_own(tensors, config)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        for name, pair in factors.items():
            self._check_factors(file, name, [pair.b.shape[0], pair.a.shape[1]])
        if replacements:
            raise ValueError(
                f"{file} replaces {join_names(replacements)}, and vLLM swaps only matrices of LoRA; {_INSTEAD}."
            )
        if unknown := [name for name in tensors if not _is_known_to_vllm(name)]:
            raise ValueError(f"{file} has {join_names(unknown)}, whose names vLLM does not know; {_INSTEAD}.")
        return any(name.startswith("base_model.model.model.layers.") for name in tensors)

    def _check_factors(self, file: Path, name: str, shape: list[int]) -> None:
        if name not in self._shapes:
            raise ValueError(f"{file} changes {name}, which the served model does not have.")
        if shape != list(self._shapes[name]):
            raise ValueError(
                f"{file} changes {name} as if its shape were {shape}, but the served model's has shape "
                f"{list(self._shapes[name])}; the adapter belongs to another model."
            )
        # vLLM maps adapters to rows as if one tower computed all images and videos of a batch (vllm#53849).
        if name in (EMBEDDINGS, HEAD) or not name.startswith("language_model."):
            raise ValueError(f"{file} changes {name}, which cannot be swapped; {_INSTEAD}.")
        if self._is_left_out(name.removesuffix(".weight")):
            raise ValueError(
                f"{file} changes {name}, which --lora-target-modules leaves out; start the server without that flag."
            )

    def _is_left_out(self, module: str) -> bool:
        targets = self._lora_config.target_modules
        if targets is None:
            return False
        # This import takes long, and few servers need it.
        from vllm.model_executor.models.llama import LlamaForCausalLM

        return not is_in_target_modules(module, targets, LlamaForCausalLM.packed_modules_mapping)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        # This import takes long, and few servers swap adapters.
        from vllm_videollava.tensors.shapes import model_shapes

        return model_shapes(self._model_config.hf_config)

    def _check_trainables(self, folder: Path, has_originals_names: bool) -> None:
        """Check what was trained beside the adapter."""
        file = folder / TRAINABLES
        if not file.exists():
            if has_originals_names:
                raise ValueError(lacks_trainables(str(folder)))
            return
        check_file(file)
        trained = {canonical(name): tensor for name, tensor in map_tensors(file).items()}
        if others := [name for name in trained if not name.startswith(_PROJECTOR)]:
            raise ValueError(f"{file} has {join_names(others)}, and vLLM cannot swap that; {_INSTEAD}.")
        if trained and not _are_equal(trained, self._served_projector()):
            raise ValueError(
                f"{file} has another projector than the served model, and vLLM cannot swap it; {_INSTEAD}."
            )

    def _served_projector(self) -> dict[str, torch.Tensor]:
        served, config = self._model_config.model, self._model_config.hf_config
        if fine_tune := self._served_fine_tune():
            for name in fine_tune.files[-1:]:
                if projector := dict(_projector_in(find_file(served, name))):
                    return projector
            served = config.base_model
        return {name: tensor for file in whole_model_files(served) for name, tensor in _projector_in(file)}


def _is_known_to_vllm(name: str) -> bool:
    try:
        parse_fine_tuned_lora_name(name)
    except ValueError:
        return False
    return True


def _are_the_same(checkpoint: str, other: str) -> bool:
    return checkpoint == other or os.path.realpath(checkpoint) == os.path.realpath(other)


def _stamps(folder: Path) -> list[tuple]:
    """Return what changes whenever a file of an adapter is written."""
    paths = [folder / name for name in (ADAPTER_CONFIG, *ADAPTER_FILES, TRAINABLES)]
    return [(path, (stat := path.stat()).st_mtime_ns, stat.st_size) for path in paths if path.exists()]


def _find_folder(path: str) -> Path:
    try:
        folder = Path(get_adapter_absolute_path(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"The adapter {shorten(path)} is no folder, and cannot be downloaded.") from error
    if not folder.is_dir():
        raise ValueError(f"The adapter {shorten(path)} is not a folder.")
    return folder


def _projector_in(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the projector in a file, by this model's names."""
    for name, tensor in map_tensors(file).items():
        if (known := canonical(name)).startswith(_PROJECTOR):
            yield known, tensor


def _are_equal(trained: dict[str, torch.Tensor], served: dict[str, torch.Tensor]) -> bool:
    """Compare projectors, each tensor in the less precise of its two dtypes, since converting rounds them."""
    return trained.keys() <= served.keys() and all(
        torch.equal(*(tensor.to(_coarser(trained[name], served[name])) for tensor in (trained[name], served[name])))
        for name in trained
    )


def _coarser(*tensors: torch.Tensor) -> torch.dtype:
    return max((tensor.dtype for tensor in tensors), key=lambda dtype: torch.finfo(dtype).eps)
