"""Quantises LLaMA's linear layers in compressed-tensors' formats: 4-bit weights, or 8-bit weights and activations."""

import re
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    preset_name_to_scheme,
)

_PRESETS = {
    4: ("W4A16", CompressionFormat.pack_quantized.value),
    8: ("W8A8", CompressionFormat.int_quantized.value),
}
_QUANTISED = re.compile(r"language_model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
# vLLM, and compressed-tensors within transformers, compare these with their own names of modules.
_IGNORED = ("re:.*lm_head", "re:.*embed_tokens", "re:.*(image|video)_tower.*", "re:.*projector.*")
_SHRINKS = {4: (1.05, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72), 8: (1.0, 0.985, 0.97)}
"""Multiples of the plain scale, at which the largest weight of a group is the largest integer, that are tried."""
_ROWS = 128
"""Rows of a weight that are quantised together, which stay in the processor's cache."""


def is_quantised(name: str) -> bool:
    """Return whether one of the model's tensors is a weight that is quantised."""
    return _QUANTISED.fullmatch(name) is not None


def quantize(weight: torch.Tensor, bits: int, scale_dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Quantise a weight `[outputs, inputs]`, float32, with the scales that give the least squared error.

    Args:
        bits: 4 or 8; with 4, each 128 inputs of an output share a scale, with 8 all of them do.
        scale_dtype: the dtype in which scales are stored.

    Returns:
        What compressed-tensors stores in place of the weight, by the names after
        the module's: with 4 bits `weight_packed`, int32 `[outputs, inputs / 8]`,
        `weight_scale` `[outputs, inputs / 128]` and `weight_shape`; with 8 bits
        `weight`, int8, and `weight_scale` `[outputs, 1]`.
    """
    compressor = BaseCompressor.get_value_from_registry(_PRESETS[bits][1])
    blocks = [
        compressor.compress({"weight": rows, "weight_scale": _search_scales(rows, bits, scale_dtype)}, _scheme(bits))
        for rows in weight.split(_ROWS)
    ]
    parts = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    return parts | ({"weight_shape": torch.tensor(weight.shape)} if "weight_shape" in parts else {})


def _scheme(bits: int) -> QuantizationScheme:
    return preset_name_to_scheme(_PRESETS[bits][0], ["Linear"])


def _search_scales(weight: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the best of some scales for each group of a weight: `[outputs, inputs]` to `[outputs, groups]`."""
    groups = weight.unflatten(-1, (-1, _scheme(bits).weights.group_size or weight.shape[-1]))
    plain = groups.abs().amax(-1) / (2 ** (bits - 1) - 0.5)
    least = torch.finfo(dtype).tiny
    candidates = [(plain * shrink).to(dtype).clamp(min=least) for shrink in _SHRINKS[bits]]
    errors = torch.stack([_squared_error(groups, scales, bits) for scales in candidates])
    best = errors.argmin(0, keepdim=True)
    return torch.stack(candidates).gather(0, best)[0]


def _squared_error(groups: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    scales = scales.float().unsqueeze(-1)
    most = 2 ** (bits - 1)
    rounded = (groups / scales).round_().clamp_(-most, most - 1)
    return rounded.mul_(scales).sub_(groups).square_().sum(-1)


def quantization_config(bits: int) -> dict[str, Any]:
    """Return the value of `quantization_config` in config.json."""
    return QuantizationConfig(
        config_groups={"group_0": _scheme(bits)},
        format=_PRESETS[bits][1],
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(_IGNORED),
    ).model_dump(mode="json", exclude_none=True)


def check_quantisable(hidden_size: int, intermediate_size: int, bits: int) -> None:
    """Check that LLaMA's widths can be cut into groups.

    Raises:
        ValueError: a width is not a multiple of a group's size.
    """
    size = _scheme(bits).weights.group_size or 1
    for name, value in (("hidden_size", hidden_size), ("intermediate_size", intermediate_size)):
        if value % size:
            raise ValueError(f"{name} is {value}; for {bits} bits it must be a multiple of {size}.")
