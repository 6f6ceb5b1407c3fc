"""The projector from the towers' features to LLaMA's embeddings."""

import torch
from torch import nn
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.vision import is_vit_use_data_parallel

from vllm_videollava.checkpoints.config import VideoLlavaConfig


class MultiModalProjector(nn.Module):
    """Linear layers with an activation between them, named as in the original's `nn.Sequential`: 0, 2, 4, ..."""

    def __init__(self, config: VideoLlavaConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.act = get_act_fn(config.projector_hidden_act)
        self.layers = nn.ModuleDict()
        # If ranks share out the items, each has whole layers.
        whole = is_vit_use_data_parallel()
        inputs, outputs = config.image_config.hidden_size, config.text_config.hidden_size
        for index in range(config.projector_depth):
            name = str(2 * index)
            linear_class = ReplicatedLinear if whole else _linear_class(index, config.projector_depth)
            self.layers[name] = linear_class(
                inputs, outputs, bias=config.projector_bias, quant_config=quant_config, prefix=f"{prefix}.layers.{name}"
            )
            inputs = outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., LLaMA's D]
        for index, layer in enumerate(self.layers.values()):
            features, _ = layer(features if index == 0 else self.act(features))
        return features


def _linear_class(index: int, depth: int) -> type[nn.Module]:
    # Layers come in pairs: the first splits its outputs among the ranks, the second splits its inputs.
    if index % 2:
        return RowParallelLinear
    return ReplicatedLinear if index == depth - 1 else ColumnParallelLinear
