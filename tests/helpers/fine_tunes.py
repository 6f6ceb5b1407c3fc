"""Folders as fine-tuning writes them, each with the whole checkpoint that it should equal, merged by peft itself."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.checkpoints import change_config, change_tensors, copy_checkpoint

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Tuned(NamedTuple):
    """A fine-tune's folder, and the folder of the whole checkpoint that should answer the same."""

    folder: Path
    whole: Path


def write_lora(
    root: Path,
    base: Path,
    *,
    seed: int = 0,
    projector: bool = True,
    safetensors: bool = True,
    base_name: str | None = None,
    **options: Any,
) -> Tuned:
    """Tune a checkpoint at random, and write what the original's finetune_lora.sh writes.

    Args:
        root: an empty folder for both.
        base: a checkpoint in the original format, in one file of safetensors.
        projector: whether non_lora_trainables.bin has a projector, or nothing.
        safetensors: whether the adapter is written so, or as older versions of PEFT did.
        base_name: what the folder calls its base; by default the absolute path.
        options: those of peft's `LoraConfig`.
    """
    torch.manual_seed(seed)
    folder, whole = root / "lora", copy_checkpoint(base, root / "whole")
    tensors = load_file(base / "model.safetensors")
    model = get_peft_model(_llama(base, tensors), LoraConfig(**{"target_modules": LAYERS, "r": 4, **options}))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * (0.3 if "lora_" in name else 1.0) * parameter_scale(name)
    model.save_pretrained(folder, safe_serialization=safetensors)
    shutil.copy(base / "config.json", folder)
    change_config(folder, _name_or_path=str(base), architectures=["LlamaForCausalLM"])
    change_adapter_config(folder, base_model_name_or_path=base_name or str(base))
    own = random_projector(tensors) if projector else {}
    torch.save({f"base_model.model.{name}": tensor for name, tensor in own.items()}, folder / "non_lora_trainables.bin")
    merged = model.merge_and_unload().state_dict()
    change_tensors(whole, lambda tensors: tensors.update({**_clone(merged), **own}))
    return Tuned(folder, whole)


def write_projector(root: Path, base: Path) -> Tuned:
    """Write what the original's pretrain.sh writes: a trained projector alone."""
    torch.manual_seed(0)
    folder, whole = root / "projector", copy_checkpoint(base, root / "whole")
    folder.mkdir()
    own = random_projector(load_file(base / "model.safetensors"))
    torch.save(own, folder / "mm_projector.bin")
    shutil.copy(base / "config.json", folder)
    change_config(folder, _name_or_path=str(base), architectures=["LlamaForCausalLM"])
    change_tensors(whole, lambda tensors: tensors.update(own))
    return Tuned(folder, whole)


def projector_of(lora: Path, folder: Path) -> Path:
    """Write the projector of a LoRA's folder as that of a projector alone, on the same base."""
    folder.mkdir()
    shutil.copy(lora / "config.json", folder)
    base = json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"]
    change_config(folder, _name_or_path=str(lora / base))
    own = torch.load(lora / "non_lora_trainables.bin", weights_only=True)
    own = {name.removeprefix("base_model.model."): tensor for name, tensor in own.items()}
    torch.save(own, folder / "mm_projector.bin")
    return folder


def parameter_scale(name: str) -> float:
    return 0.5 if "lora_" in name else 0.1


def random_projector(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Draw a projector of the same shape."""
    return {name: torch.randn_like(tensor) * 0.1 for name, tensor in tensors.items() if "mm_projector" in name}


def change_adapter_config(folder: Path, **values: Any) -> Path:
    """Set values in a folder's adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def change_adapter(folder: Path, change) -> Path:
    """Let `change` edit the tensors of an adapter."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def _llama(base: Path, tensors: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    values = json.loads((base / "config.json").read_text())
    names = LlamaConfig().to_dict().keys() - {"architectures", "model_type", "torch_dtype", "dtype"}
    config = LlamaConfig(**{name: value for name, value in values.items() if name in names})
    model = LlamaForCausalLM(config).float()
    own = {name: tensor for name, tensor in tensors.items() if "_tower" not in name and "mm_projector" not in name}
    model.load_state_dict(own, strict=True)
    return model


def _clone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write_lora_of_towers(root: Path, base: Path) -> Tuned:
    """Write an adapter of the linear layers of both towers and of the projector, all at random.

    The whole checkpoint gets the sums by LoRA's formula, since no library has
    a model of these towers for peft to adapt.
    """
    torch.manual_seed(0)
    folder, whole = root / "lora", copy_checkpoint(base, root / "whole")
    rank, alpha = 4, 6
    factors, sums = {}, {}
    for name, weight in load_file(base / "model.safetensors").items():
        if weight.ndim == 2 and name.endswith("_proj.weight" if "_tower" in name else "mm_projector.0.weight"):
            outputs, inputs = weight.shape
            a, b = torch.randn(rank, inputs) * 0.15, torch.randn(outputs, rank) * 0.15
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            sums[name] = weight + alpha / rank * b @ a
    folder.mkdir(parents=True)
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.save({}, folder / "non_lora_trainables.bin")
    shutil.copy(base / "config.json", folder)
    targets = sorted({name.split(".")[-3] for name in factors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    change_tensors(whole, lambda tensors: tensors.update(sums))
    return Tuned(folder, whole)
