"""Strict loading of weights: every tensor is used, every parameter is filled."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.utils import AutoWeightsLoader, PPMissingLayer, StageMissingLayer

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.tensors.merging import join_names
from vllm_videollava.tensors.names import TENSOR_NAMES, is_computed_with


class StrictWeightsLoader:
    """Fills a model from a checkpoint or from a part of one, and refuses tensors that do not fit.

    Args:
        model: a model that has not been filled yet.
        config: its config.
    """

    def __init__(self, model: nn.Module, config: VideoLlavaConfig) -> None:
        self._model = model
        self._config = config
        self._expected, self._open_prefixes = _checkpoint_tensors(model)
        self._tied = _tied_parameters(model)
        for name in self._tied:
            self._expected.pop(name, None)
        self._seen: set[str] = set()
        self._surplus: list[str] = []

    def has_seen(self, prefix: str) -> bool:
        """Return whether the last call of `load` has met a tensor whose name begins with `prefix`, so far."""
        return any(name.startswith(prefix) for name in self._seen)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Fill the parameters that some tensors are for.

        Returns:
            The names of the filled parameters.

        Raises:
            ValueError: a tensor is unexpected, has a wrong shape, or differs
                from one that it is tied to. The sentence names it.
        """
        self._seen, self._surplus = set(), []
        filled = AutoWeightsLoader(self._model).load_weights(
            self._select(weights), mapper=LlamaForCausalLM.hf_to_vllm_mapper
        )
        if self._surplus:
            raise ValueError(f"The checkpoint has tensors that this model does not use: {join_names(self._surplus)}.")
        return filled

    def check_complete(self) -> None:
        """Check that the last call of `load` has met every tensor.

        Raises:
            ValueError: a parameter was left as it was. The sentence names it.
        """
        if missing := self._expected.keys() - self._seen:
            raise ValueError(f"The checkpoint lacks tensors that this model needs: {join_names(missing)}.")

    def _select(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        shared: dict[str, torch.Tensor] = {}
        for checkpoint_name, tensor in weights:
            (name,) = TENSOR_NAMES.apply_list([checkpoint_name])
            name = self._tied.get(name, name)
            if name in self._expected:
                if tensor.shape != self._expected[name]:
                    raise ValueError(
                        f"The checkpoint's tensor {checkpoint_name} has shape {list(tensor.shape)}; "
                        f"it must be {list(self._expected[name])}."
                    )
            elif not name.startswith(self._open_prefixes):
                if is_computed_with(name, self._config):
                    self._surplus.append(checkpoint_name)
                continue
            if name in self._tied.values():
                # Cloned, because the file's reader may reuse a tensor's memory.
                first = shared.setdefault(name, tensor.clone())
                if not torch.equal(first, tensor):
                    raise ValueError(
                        f"The checkpoint's tensor {checkpoint_name} differs from the embeddings, "
                        "though tie_word_embeddings is true in its config.json."
                    )
            self._seen.add(name)
            yield name, tensor


def _checkpoint_tensors(model: nn.Module) -> tuple[dict[str, torch.Size], tuple[str, ...]]:
    """Return the shapes of the tensors that fill the model, and the prefixes below which any tensor is accepted.

    Any tensor is accepted for layers on other ranks; for quantised layers,
    because their method knows their tensors; and for attention, because it may
    have scales for the cache.
    """
    shapes: dict[str, torch.Size] = {}
    open_prefixes: list[str] = []
    for prefix, module in model.named_modules():
        if isinstance(module, (PPMissingLayer, StageMissingLayer, Attention)) or _is_quantised(module):
            open_prefixes += [f"{name}." for name in _unpack(prefix)]
        elif isinstance(module, LinearBase):
            for name, size in zip(_unpack(prefix), _output_sizes(module), strict=True):
                shapes[f"{name}.weight"] = torch.Size((size, module.input_size))
                if module.bias is not None:
                    shapes[f"{name}.bias"] = torch.Size((size,))
        elif isinstance(module, VocabParallelEmbedding):
            shapes[f"{prefix}.weight"] = torch.Size((module.org_vocab_size, module.embedding_dim))
        else:
            shapes |= {f"{prefix}.{name}": param.shape for name, param in module.named_parameters(recurse=False)}
    return shapes, tuple(open_prefixes)


def _tied_parameters(model: nn.Module) -> dict[str, str]:
    """For parameters with several names, map each further name to the first one."""
    first = {param: name for name, param in model.named_parameters()}
    names = model.named_parameters(remove_duplicate=False)
    return {name: first[param] for name, param in names if name != first[param]}


def _is_quantised(module: nn.Module) -> bool:
    return isinstance(module, LinearBase) and not isinstance(module.quant_method, UnquantizedLinearMethod)


def _unpack(prefix: str) -> list[str]:
    """Return a module's names in the checkpoint; there are several if vLLM has merged several linear layers into it."""
    parent, dot, name = prefix.rpartition(".")
    return [parent + dot + part for part in LlamaForCausalLM.packed_modules_mapping.get(name, [name])]


def _output_sizes(module: LinearBase) -> Sequence[int]:
    if isinstance(module, QKVParallelLinear):
        key_size = module.total_num_kv_heads * module.head_size
        return module.total_num_heads * module.head_size, key_size, key_size
    return module.output_sizes if isinstance(module, MergedColumnParallelLinear) else [module.output_size]
