"""The shapes of all tensors of a model, by this model's names."""

import re

import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.checkpoints.tower_config import TowerConfig
from vllm_videollava.tensors.merging import canonical
from vllm_videollava.tensors.names import HEAD

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
