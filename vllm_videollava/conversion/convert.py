"""Writes a checkpoint anew, as one folder that can be served on its own."""

from pathlib import Path
from typing import Any, Protocol

import torch

from vllm_videollava.checkpoints.adapter_config import read_json_object
from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.checkpoints.weight_files import find_file
from vllm_videollava.conversion.completeness import select
from vllm_videollava.conversion.folder import check_new, check_space, new_folder
from vllm_videollava.conversion.original_format import OriginalFormat
from vllm_videollava.conversion.output import Output
from vllm_videollava.conversion.quantization import check_quantisable, quantization_config
from vllm_videollava.conversion.small_files import GENERATION_CONFIG, copy_files, write_json
from vllm_videollava.conversion.source import Model, open_model, read_config
from vllm_videollava.conversion.transformers_format import FromOriginal, TransformersFormat
from vllm_videollava.conversion.writing import write_shards
from vllm_videollava.tensors.names import EMBEDDINGS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_OTHER_FILES = 64 << 20
"""Bytes that are more than enough for tokenizer, configs and headers."""


class Format(Protocol):
    """The format of the new checkpoint."""

    def select(self, model: Model) -> Model:
        """Return what the new checkpoint has of a model."""

    def tensor_name(self, name: str) -> str:
        """Return the format's name of one of this model's tensors."""

    def config(self) -> dict[str, Any]:
        """Return the values of config.json."""

    def write_files(self, folder: Path) -> None:
        """Write what belongs beside the weights and config.json."""


def convert(
    source: str,
    out: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    shard_size: str = "4GB",
    bits: int | None = None,
    to_transformers: bool = False,
) -> list[str]:
    """Write a checkpoint anew: a fine-tune merged with its base, towers from elsewhere added.

    Args:
        source: its folder or repository, in either format.
        out: the new folder.
        base: the base's folder or repository, if the fine-tune does not name it.
        dtype: one of `DTYPES`, by default the source's.
        shard_size: most that a file of weights has.
        bits: 4 or 8 for quantised weights in LLaMA's linear layers.
        to_transformers: write transformers' format, whatever the source's is.

    Returns:
        A sentence about each thing that was lost.

    Raises:
        ValueError: the source cannot be served, the folder exists, or the disk is full. The folder has not been made.
    """
    check_new(out)
    config = read_config(source, base)
    if bits:
        check_quantisable(config.text_config.hidden_size, config.text_config.intermediate_size, bits)
    new_format = _choose_format(source, config, to_transformers)
    model = new_format.select(select(open_model(source, config), config))
    torch_dtype = DTYPES[dtype] if dtype else _dtype_of(config, model)
    output = Output(model, new_format.tensor_name, torch_dtype, bits)
    check_space(out, sum(spec.nbytes for spec in output.specs.values()) + _OTHER_FILES)
    with new_folder(out) as part:
        write_shards(part, output.specs, output.tensors(), shard_size)
        new_format.write_files(part)
        for place in filter(None, (config.base_model, source)):
            copy_files(place, (GENERATION_CONFIG,), part)
        # The last file: no part of a checkpoint looks like one.
        write_json(part / "config.json", _with_dtype(new_format.config(), torch_dtype, bits))
    if isinstance(new_format, FromOriginal) and config.video_config.add_time_attn:
        return [f"{out} lacks the video tower's attention over time, which transformers' model does not have."]
    return []


def _choose_format(checkpoint: str, config: VideoLlavaConfig, to_transformers: bool) -> Format:
    if not config.original_format:
        return TransformersFormat(checkpoint, config, read_json_object(find_file(checkpoint, "config.json")))
    return FromOriginal(checkpoint, config) if to_transformers else OriginalFormat(checkpoint, config)


def _dtype_of(config: VideoLlavaConfig, model: Model) -> torch.dtype:
    return config.dtype if config.dtype in DTYPES.values() else model[EMBEDDINGS].spec.dtype


def _with_dtype(values: dict[str, Any], dtype: torch.dtype, bits: int | None) -> dict[str, Any]:
    inner = {name: _without_types(value) for name, value in values.items() if name in ("text_config", "vision_config")}
    # Every version of transformers reads this name.
    values = _without_types(values) | inner | {"torch_dtype": str(dtype).removeprefix("torch.")}
    return values | {"quantization_config": quantization_config(bits)} if bits else values


def _without_types(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in values.items() if name not in ("dtype", "torch_dtype", "quantization_config")
    }
