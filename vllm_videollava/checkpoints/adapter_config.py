"""Reads adapter_config.json, which PEFT writes beside a LoRA adapter."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vllm_videollava.decoding.errors import shorten

ADAPTER_CONFIG = "adapter_config.json"

# They say how an adapter was made or where it was put, which its tensors show as well.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    # PEFT ignores it for linear layers, and this model has no others.
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_READ = {"alpha_pattern", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_rslora"}
# The others change the base's weights too, so that the adapter does not fit the base as it is.
_INITIAL_WEIGHTS = ("gaussian", "eva", "orthogonal", "mica")


class AdapterConfig(NamedTuple):
    """What scales a LoRA adapter, and the model that it changes.

    Attributes:
        r: the rank of most matrices.
        alpha: the numerator of the scale of most matrices.
        has_root_scale: whether the rank's root divides alpha (rsLoRA), and not the rank.
        rank_pattern, alpha_pattern: other ranks and alphas, by a pattern for the end of a module's name.
        base: the folder or repository of the base, if the file names one.
    """

    r: int
    alpha: float
    has_root_scale: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base: str | None

    def rank(self, module: str) -> int:
        """Return the rank of a module, named as in the adapter's file without PEFT's prefix."""
        return _find(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Return what the product of a module's two matrices is multiplied by."""
        rank = self.rank(module)
        return _find(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.has_root_scale else rank)


def _find(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read a file as PEFT writes it.

    Raises:
        ValueError: the file cannot be read, or the adapter is of a kind that cannot be merged.
    """
    values = read_json_object(path)
    kind = values.get("peft_type")
    if str(kind).upper() != "LORA":
        raise ValueError(f"{path}: peft_type is {shorten(kind)}; it must be 'LORA'.")
    initial = values.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.lower() not in _INITIAL_WEIGHTS:
        raise ValueError(
            f"{path}: init_lora_weights is {shorten(initial)}, which changes the base too; "
            "save the adapter again with PEFT's path_initial_model_for_weight_conversion."
        )
    for name in sorted(values.keys() - _READ - _WITHOUT_EFFECT):
        if values[name]:
            raise ValueError(f"{path}: {name} is {shorten(values[name])}; adapters that use it are not supported.")
    base = values.get("base_model_name_or_path")
    return AdapterConfig(
        r=_positive(path, "r", values.get("r", 8), int),
        alpha=_positive(path, "lora_alpha", values.get("lora_alpha", 8), (int, float)),
        has_root_scale=bool(values.get("use_rslora")),
        rank_pattern=_numbers(path, "rank_pattern", values, int),
        alpha_pattern=_numbers(path, "alpha_pattern", values, (int, float)),
        base=base if isinstance(base, str) and base else None,
    )


def _numbers(path: Path, name: str, values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    patterns = values.get(name) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{path}: {name} is {shorten(patterns)}; it must map names to numbers.")
    for key, value in patterns.items():
        _positive(path, f"{name}[{key!r}]", value, kind)
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(f"{path}: {name} has the key {shorten(key)}; it must be a regular expression.") from error
    return patterns


def _positive(path: Path, name: str, value: Any, kind: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
        what = "whole number" if kind is int else "number"
        raise ValueError(f"{path}: {name} is {shorten(value)}; it must be a positive {what}.")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file of JSON that has an object.

    Raises:
        ValueError: the file cannot be read, or has something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of JSON; save it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} has {shorten(values)}; it must have a JSON object.")
    return values
