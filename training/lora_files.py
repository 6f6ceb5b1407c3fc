"""Writes a LoRA fine-tune's folder as the original's training does."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save

from training.original_format import write_json
from training.trainable import TARGETS, TrainableVideoLlava
from vllm_videollava.checkpoints.adapter_config import ADAPTER_CONFIG
from vllm_videollava.checkpoints.config import TOWER_FIELDS, is_original_format
from vllm_videollava.checkpoints.fine_tune import ADAPTER_FILES, TRAINABLES
from vllm_videollava.checkpoints.tower_config import locate_tower

PREFIX = "base_model.model."
"""PEFT's prefix; it stands before the names of all tensors."""
# transformers' port has one more level, and other names in the projector.
_LAYERS_OF_PORT = f"{PREFIX}model.language_model.layers."
_PROJECTOR_OF_PORT = {"layers.0.": "linear_1.", "layers.2.": "linear_2."}
# Without the path, PEFT would put the adapter on the towers as well.
_TARGETS_OF_PORT = rf".*language_model\..*\.({'|'.join(TARGETS)})"


def check_output(output: Path) -> None:
    """Refuse a folder that exists.

    Raises:
        ValueError: it exists.
    """
    if output.exists():
        raise ValueError(f"{output} exists; name a folder that does not.")


def write_fine_tune(
    output: Path, base: str, model: TrainableVideoLlava, adapter: PeftModel, dtype: torch.dtype
) -> None:
    """Write adapter, projector and configs to a folder beside `output`, which gets its name when all is written.

    Args:
        base: the base's folder, as the user has named it.
        dtype: type of the written tensors.
    """
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    original = model.config.original_format
    adapter_tensors = {
        _adapter_name(name, original): value for name, value in get_peft_model_state_dict(adapter).items()
    }
    projector = {
        _projector_name(name, model): value for name, value in model.multi_modal_projector.state_dict().items()
    }
    (partial / ADAPTER_FILES[0]).write_bytes(save(_written(adapter_tensors, dtype), metadata={"format": "pt"}))
    torch.save(_written(projector, dtype), partial / TRAINABLES)
    write_json(partial / ADAPTER_CONFIG, _adapter_config(base, adapter, original))
    write_json(partial / "config.json", _config(base, output))
    partial.rename(output)


def _written(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}


def _adapter_name(name: str, original: bool) -> str:
    return name if original else name.replace(f"{PREFIX}model.layers.", _LAYERS_OF_PORT, 1)


def _projector_name(name: str, model: TrainableVideoLlava) -> str:
    if not model.config.original_format:
        return f"{PREFIX}model.multi_modal_projector." + re.sub(
            r"layers\.\d\.", lambda match: _PROJECTOR_OF_PORT[match[0]], name
        )
    # A projector of one layer has no number.
    name = name.removeprefix("layers.")
    return f"{PREFIX}model.mm_projector." + (name.removeprefix("0.") if model.config.projector_depth == 1 else name)


def _adapter_config(base: str, adapter: PeftModel, original: bool) -> dict:
    values = adapter.peft_config["default"].to_dict()
    changed = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": list(TARGETS) if original else _TARGETS_OF_PORT,
        # The port is no causal language model by PEFT's list.
        "task_type": values["task_type"] if original else None,
    }
    return json.loads(json.dumps({**values, **changed}, default=str))


def _config(base: str, output: Path) -> dict:
    """Return the base's config, which also says where the base and its towers are."""
    values = json.loads((Path(base) / "config.json").read_text())
    values["_name_or_path"] = base
    for field in TOWER_FIELDS.values() if is_original_format(values) else ():
        location = locate_tower(values[field], base)
        if os.path.isdir(location):
            # A path that is relative to the base's folder would lead nowhere from this one.
            values[field] = location if os.path.isabs(location) else _relative(location, output)
    return values


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
