"""Which tensors a model has, and the check that a checkpoint has these and no others."""

import re

import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.checkpoints.tower_config import TowerConfig
from vllm_videollava.conversion.files import StoredTensor
from vllm_videollava.conversion.source import HEAD, Model
from vllm_videollava.model.merging import UNQUANTISED, canonical, join_names
from vllm_videollava.model.names import UNUSED

Shapes = dict[str, torch.Size]


def model_shapes(config: VideoLlavaConfig) -> Shapes:
    """Return the shapes of all tensors by this model's names, those that are never computed with included."""
    shapes = _language_model(config) | _projector(config)
    for tower in ("image", "video"):
        tower_shapes = _tower(getattr(config, f"{tower}_config"))
        shapes |= {canonical(f"{tower}_tower.{name}"): shape for name, shape in tower_shapes.items()}
    return shapes


def _language_model(config: VideoLlavaConfig) -> Shapes:
    with torch.device("meta"):
        parameters = LlamaForCausalLM(config.text_config).state_dict()
    shapes = {canonical(name): parameter.shape for name, parameter in parameters.items()}
    if config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


def _projector(config: VideoLlavaConfig) -> Shapes:
    shapes: Shapes = {}
    outputs = config.text_config.hidden_size
    for index in range(config.projector_depth):
        layer = f"multi_modal_projector.layers.{2 * index}"
        shapes[f"{layer}.weight"] = torch.Size((outputs, outputs if index else config.image_config.hidden_size))
        if config.projector_bias:
            shapes[f"{layer}.bias"] = torch.Size((outputs,))
    return shapes


def _tower(config: TowerConfig) -> Shapes:
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in CLIPVisionModel(config).named_parameters()}
    return shapes | _temporal(shapes, config) if config.add_time_attn else shapes


def _temporal(shapes: Shapes, config: TowerConfig) -> Shapes:
    """Return the shapes of attention over time, which are those of each layer's own attention and norm."""
    replaced = {".self_attn.": ".temporal_attn.", ".layer_norm1.": ".temporal_layer_norm1."}
    temporal = {
        name.replace(own, over_time): shape
        for name, shape in shapes.items()
        for own, over_time in replaced.items()
        if own in name
    }
    layers = {match[0] for name in shapes if (match := re.match(r".*encoder\.layers\.\d+", name))}
    embedding = torch.Size((1, config.num_frames, config.hidden_size))
    return temporal | {f"{layer}.temporal_embedding": embedding for layer in layers}


def is_computed_with(name: str, config: VideoLlavaConfig) -> bool:
    """Return whether the model needs one of its tensors; it stops at the towers' selected layer."""
    if any(pattern.fullmatch(name) for pattern in UNUSED):
        return False
    layer = re.match(r"(image|video)_tower\.encoder\.layers\.(\d+)\.", name)
    return layer is None or int(layer[2]) < _last_layer(config, getattr(config, f"{layer[1]}_config"))


def _last_layer(config: VideoLlavaConfig, tower: TowerConfig) -> int:
    layer = config.vision_feature_layer
    return layer if layer >= 0 else tower.num_hidden_layers + 1 + layer


def select(model: Model, config: VideoLlavaConfig) -> Model:
    """Return the tensors of `model` that belong to it, in its own order; buffers and the like are left out.

    Raises:
        ValueError: a tensor is missing, misshapen or surplus. The sentence names it.
    """
    shapes = model_shapes(config)
    needed = {name for name in shapes if is_computed_with(name, config)}
    if missing := needed - model.keys():
        raise ValueError(f"The checkpoint lacks tensors that this model needs: {join_names(missing)}.")
    surplus = [stored.name for name, stored in model.items() if name not in shapes and is_computed_with(name, config)]
    if surplus:
        raise ValueError(f"The checkpoint has tensors that this model does not use: {join_names(surplus)}.")
    for name in needed:
        _check(model[name], shapes[name])
    return {name: model[name] for name, shape in shapes.items() if name in model and model[name].spec.shape == shape}


def _check(stored: StoredTensor, shape: torch.Size) -> None:
    if stored.spec.shape != shape:
        raise ValueError(
            f"The checkpoint's tensor {stored.name} has shape {list(stored.spec.shape)}; it must be {list(shape)}."
        )
    if stored.spec.dtype not in UNQUANTISED:
        raise ValueError(
            f"The checkpoint's tensor {stored.name} is {stored.spec.dtype}; only weights that are not quantised can be "
            "converted."
        )
