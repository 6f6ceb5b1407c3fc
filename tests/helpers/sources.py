"""What fine-tuning leaves behind, in the folders of the original code: adapters, projectors, models without towers."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers.checkpoints import change_tensors
from vllm_videollava.conversion.small_files import write_json

TOWERS = {"image_tower": "LanguageBind_Image", "video_tower": "LanguageBind_Video_merge"}
SCALE = 2.0
"""Of the adapters: alpha divided by the rank."""
_RANK = 4


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a folder's safetensors."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def move_towers_away(folder: Path) -> None:
    """As a fine-tune without towers: their weights lie in the towers' folders, together with others."""

    def move(tensors: dict[str, torch.Tensor]) -> None:
        for tower, name in TOWERS.items():
            prefix = f"model.{tower}.{tower}."
            names = [key for key in tensors if key.startswith(prefix)]
            own = {key.replace(prefix, "vision_model."): tensors.pop(key) for key in names}
            own |= {"vision_model.embeddings.position_ids": torch.arange(17)[None], "logit_scale": torch.ones(())}
            halves = ("text_model.final_layer_norm.weight", "text_projection.weight", "visual_projection.weight")
            own |= {half: torch.ones(2, 2) for half in halves}
            torch.save(own, folder / name / "pytorch_model.bin")

    change_tensors(folder, move)


def to_bin(folder: Path) -> None:
    """Write the weights anew as two shards without an index, as PyTorch does."""
    tensors = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    for shard, part in enumerate((tensors[::2], tensors[1::2]), start=1):
        torch.save(dict(part), folder / f"pytorch_model-{shard:05}-of-00002.bin")


def write_adapter(folder: Path, base: Path, names_base: bool = True, is_bin: bool = False) -> dict[str, torch.Tensor]:
    """Write the folder of a run with LoRA on `base`; return the factors and the projector, by the base's names."""
    generator = torch.Generator().manual_seed(5)
    factors, changed = {}, {}
    for name, weight in weights(base).items():
        if "_proj.weight" in name and name.startswith("model.layers."):
            module = name.removesuffix(".weight")
            a = torch.randn(_RANK, weight.shape[1], generator=generator) / 10
            b = torch.randn(weight.shape[0], _RANK, generator=generator) / 10
            factors |= {f"base_model.model.{module}.lora_{side}.weight": one for side, one in (("A", a), ("B", b))}
            changed[name] = weight.float() + SCALE * b @ a
    folder.mkdir()
    if is_bin:
        torch.save(factors, folder / "adapter_model.bin")
    else:
        save_file(factors, folder / "adapter_model.safetensors")
    projector = _new_projector(base, generator)
    torch.save(
        {f"base_model.model.{name}": tensor for name, tensor in projector.items()}, folder / "non_lora_trainables.bin"
    )
    adapter = {"peft_type": "LORA", "r": _RANK, "lora_alpha": SCALE * _RANK, "base_model_name_or_path": None}
    write_json(folder / "adapter_config.json", adapter | ({"base_model_name_or_path": str(base)} if names_base else {}))
    _write_config(folder, base, names_base)
    (folder / "trainer_state.json").write_text("{}")
    return changed | projector


def write_projector(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    """Write the folder of a run that trained the projector alone; return it, by the base's names."""
    folder.mkdir()
    projector = _new_projector(base, torch.Generator().manual_seed(6))
    torch.save(projector, folder / "mm_projector.bin")
    _write_config(folder, base, names_base=True)
    return projector


def _new_projector(base: Path, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights(base).items()
        if "mm_projector" in name
    }


def _write_config(folder: Path, base: Path, names_base: bool) -> None:
    values = json.loads((base / "config.json").read_text())
    write_json(
        folder / "config.json",
        values | {"architectures": ["LlamaForCausalLM"], "_name_or_path": str(base) if names_base else ""},
    )
    for name in TOWERS.values():
        shutil.copytree(base / name, folder / name)
