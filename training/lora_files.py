"""Writes a LoRA fine-tune's folder as the original's training does."""

import json
import os
import re
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save

from training.trainable import TARGETS, TrainableVideoLlava
from vllm_videollava.checkpoints.adapter_config import ADAPTER_CONFIG, read_json_object
from vllm_videollava.checkpoints.fine_tune import ADAPTER_FILES, TRAINABLES
from vllm_videollava.checkpoints.weight_files import find_file
from vllm_videollava.conversion.small_files import write_json

PREFIX = "base_model.model."
"""PEFT's prefix; it stands before the names of all tensors."""
# transformers' port has one more level, and other names in the projector.
_LAYERS_OF_PORT = f"{PREFIX}model.language_model.layers."
_PROJECTOR_OF_PORT = {"layers.0.": "linear_1.", "layers.2.": "linear_2."}
# Without the path, PEFT would put the adapter on the towers as well.
_TARGETS_OF_PORT = rf".*language_model\..*\.({'|'.join(TARGETS)})"


def num_bytes(model: TrainableVideoLlava) -> int:
    """Return how many bytes a fine-tune's tensors take on the disk."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained * model.stored_dtype.itemsize


def write_fine_tune(folder: Path, output: Path, base: str, model: TrainableVideoLlava, adapter: PeftModel) -> None:
    """Write adapter, projector and configs, in the type in which the base's projector is stored.

    Args:
        folder: an empty folder.
        output: the name that it will get.
        base: the base's folder or repository.
    """
    original = model.config.original_format
    values = read_json_object(find_file(base, "config.json"))
    adapter_tensors = {
        _adapter_name(name, original): value
        # By default, PEFT would look the base up and might add the embeddings.
        for name, value in get_peft_model_state_dict(adapter, save_embedding_layers=False).items()
    }
    projector = {
        _projector_name(name, model): value for name, value in model.multi_modal_projector.state_dict().items()
    }
    if os.path.isdir(base) and not os.path.isabs(base):
        # The package looks for a base from the fine-tune's folder on, so that the two may move together.
        base = os.path.relpath(os.path.realpath(base), os.path.realpath(output))
    # Written like any other file, because `save_file` makes a file that only its owner may read.
    (folder / ADAPTER_FILES[0]).write_bytes(save(_written(adapter_tensors, model.stored_dtype), {"format": "pt"}))
    torch.save(_written(projector, model.stored_dtype), folder / TRAINABLES)
    write_json(folder / ADAPTER_CONFIG, _adapter_config(base, adapter, original))
    write_json(folder / "config.json", values | {"_name_or_path": base})


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
