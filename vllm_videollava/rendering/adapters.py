"""Checks a LoRA adapter before the engine loads it beside the served checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.lora.utils import get_adapter_absolute_path

from vllm_videollava.checkpoints.fine_tune import TRAINABLES, find_fine_tune, read_adapter
from vllm_videollava.checkpoints.weight_files import check_file, find_file, whole_model_files
from vllm_videollava.decoding.errors import shorten
from vllm_videollava.tensor_file import map_tensors

_PROJECTOR = ("mm_projector.", "multi_modal_projector.")


class AdapterGate:
    """Lets adapters through that change only what vLLM swaps for each request, which the projector is not."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._model_config, self._lora_config = vllm_config.model_config, vllm_config.lora_config
        self._passed: set[str] = set()

    def check(self, path: str, *, again: bool = False) -> None:
        """Check an adapter's folder or repository.

        Args:
            path: of the adapter.
            again: whether to check it even if it has passed before.

        Raises:
            ValueError: a file is missing or damaged, the adapter is of an unsupported kind, its rank is too high, or
                it was trained together with another projector than the served one.
        """
        if self._lora_config is None or (path in self._passed and not again):
            return
        folder = _find_folder(path)
        self._check_files(folder)
        self._check_projector(folder)
        self._passed.add(path)

    def _check_files(self, folder: Path) -> None:
        config, name = read_adapter(str(folder))
        check_file(folder / name)
        rank, most = max(config.r, *config.rank_pattern.values(), 0), self._lora_config.max_lora_rank
        if rank > most:
            raise ValueError(f"{folder} has rank {rank}; start the server with --max-lora-rank {rank}, or serve it.")

    def _check_projector(self, folder: Path) -> None:
        if not (folder / TRAINABLES).exists():
            return
        check_file(folder / TRAINABLES)
        trained = dict(_projector_in(folder / TRAINABLES))
        if trained and not _are_equal(trained, self._served_projector()):
            raise ValueError(
                f"{folder / TRAINABLES} has another projector than the served model, and vLLM cannot swap it; serve "
                f"the folder itself (vllm serve {folder}), or serve it and swap in adapters trained with its projector."
            )

    def _served_projector(self) -> dict[str, torch.Tensor]:
        served, config = self._model_config.model, self._model_config.hf_config
        if fine_tune := find_fine_tune(served, config.original_values or {}):
            for name in fine_tune.files[-1:]:
                if projector := dict(_projector_in(find_file(served, name))):
                    return projector
            served = config.base_model
        return {name: tensor for file in whole_model_files(served) for name, tensor in _projector_in(file)}


def _find_folder(path: str) -> Path:
    try:
        folder = Path(get_adapter_absolute_path(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"The adapter {shorten(path)} is no folder, and cannot be downloaded.") from error
    if not folder.is_dir():
        raise ValueError(f"The adapter {shorten(path)} is not a folder.")
    return folder


def _projector_in(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the projector in a file, named from the projector's own name on."""
    for name, tensor in map_tensors(file).items():
        if short := _short(name):
            yield short, tensor


def _short(name: str) -> str | None:
    return next((name[name.index(part) :] for part in _PROJECTOR if part in name), None)


def _are_equal(trained: dict[str, torch.Tensor], served: dict[str, torch.Tensor]) -> bool:
    """Compare projectors, each tensor in the less precise of its two dtypes, since converting rounds them."""
    return trained.keys() <= served.keys() and all(
        torch.equal(*(tensor.to(_coarser(trained[name], served[name])) for tensor in (trained[name], served[name])))
        for name in trained
    )


def _coarser(*tensors: torch.Tensor) -> torch.dtype:
    return max((tensor.dtype for tensor in tensors), key=lambda dtype: torch.finfo(dtype).eps)
