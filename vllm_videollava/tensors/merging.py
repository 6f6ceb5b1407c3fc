"""Puts a fine-tune's tensors into its base's, tensor by tensor, while both are loaded."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from vllm_videollava.checkpoints.adapter_config import AdapterConfig
from vllm_videollava.tensors.names import TENSOR_NAMES

BASE = "base:"
"""Marks the names of the base's tensors, which come after the fine-tune's own."""
_PEFT = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.*)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
_COPY = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")
_ORIGINAL = ".original_module."
"""Is in the names of the base's own weights, which PEFT keeps beside the trained ones."""

UNQUANTISED = (torch.float32, torch.float16, torch.bfloat16)

Weights = Iterable[tuple[str, torch.Tensor]]


class Factors(NamedTuple):
    """What an adapter adds to one weight `[outputs, inputs]`: `scale * b @ a`.

    Attributes:
        a: `[rank, inputs]`.
        b: `[outputs, rank]`.
        scale: alpha divided by the rank or by its root.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


def merge(
    weights: Weights, adapter: AdapterConfig | None, absent: tuple[str, ...] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a base's tensors with a fine-tune's in them; a weight that an adapter changes is float32.

    Args:
        weights: first the fine-tune's own tensors, then the base's, of which the first ones are marked with `BASE`.
        adapter: the config of the adapter that the own tensors belong to; without one, all of them replace others.
        absent: prefixes of this model's names whose tensors the base need not have.

    Raises:
        ValueError: the fine-tune's tensors are incomplete, misshapen, of an
            unknown kind, or change what the base does not have.
    """
    own, base = _take_own(iter(weights))
    replacements, factors = split_own(own, adapter)
    unused = set(factors)
    kept = (pair for pair in base if canonical(pair[0].removeprefix(BASE)) not in replacements)
    # PEFT saves an adapted embedding together with its factors.
    for name, tensor in itertools.chain(replacements.values(), kept):
        name = name.removeprefix(BASE)
        if (known := canonical(name)) in factors:
            unused.discard(known)
            tensor = add(name, tensor, factors[known])
        yield name, tensor
    if unused := {name for name in unused if not name.startswith(absent)}:
        raise ValueError(f"The adapter changes what its base does not have: {join_names(unused)}.")


def _take_own(weights: Iterator[tuple[str, torch.Tensor]]) -> tuple[dict[str, torch.Tensor], Weights]:
    own: dict[str, torch.Tensor] = {}
    for name, tensor in weights:
        if name.startswith(BASE):
            return own, itertools.chain([(name, tensor)], weights)
        # Cloned, because the file's reader may reuse a tensor's memory.
        own[name] = tensor.clone()
    return own, ()


def add(name: str, weight: torch.Tensor, factors: Factors) -> torch.Tensor:
    """Add the product of two factors to the base's `weight` `[outputs, inputs]`; return it in float32.

    Raises:
        ValueError: shapes do not fit, or the base is quantised.
    """
    shape = [factors.b.shape[0], factors.a.shape[1]]
    if list(weight.shape) != shape:
        raise ValueError(
            f"The adapter's matrices for {name} make a weight of shape {shape}; "
            f"the base's has shape {list(weight.shape)}."
        )
    if weight.dtype not in UNQUANTISED:
        raise ValueError(f"The base's tensor {name} is {weight.dtype}; an adapter needs a base that is not quantised.")
    return torch.addmm(weight.float(), factors.b.float(), factors.a.float(), alpha=factors.scale)


def split_own(
    own: dict[str, torch.Tensor], adapter: AdapterConfig | None
) -> tuple[dict[str, tuple[str, torch.Tensor]], dict[str, Factors]]:
    """Split a fine-tune's tensors into those that replace the base's, and factors whose products are added to them.

    Args:
        own: tensors by their names in the files of the fine-tune.
        adapter: the adapter's config; without one, all tensors replace others.

    Returns:
        replacements (name in the original's or transformers' form, tensor) and
        factors, both by this model's names.

    Raises:
        ValueError: a factor is missing, misshapen, or of an unknown kind.
    """
    replacements: dict[str, tuple[str, torch.Tensor]] = {}
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in own.items():
        name = name.removeprefix(_PEFT)
        if _ORIGINAL in name:
            continue
        match = _FACTOR.fullmatch(name)
        if match is None:
            plain = _COPY.sub("", name)
            if "lora_" in plain or "token_adapter" in plain:
                raise ValueError(f"The fine-tune has a tensor of an unknown kind: {name}.")
            replacements[canonical(plain)] = plain, tensor
        elif match["embedding"]:
            # The factors of embeddings are for [inputs, outputs].
            sides.setdefault(match["module"], {})["B" if match["side"] == "A" else "A"] = tensor.T
        else:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    if sides and adapter is None:
        raise ValueError(f"The fine-tune has matrices of an adapter, but no config for them: {join_names(sides)}.")
    return replacements, {
        canonical(f"{module}.weight"): _pair(module, matrices, adapter) for module, matrices in sides.items()
    }


def _pair(module: str, matrices: dict[str, torch.Tensor], adapter: AdapterConfig) -> Factors:
    for side in "AB":
        if side not in matrices:
            raise ValueError(f"The adapter lacks the tensor lora_{side} of {module}.")
    a, b = matrices["A"], matrices["B"]
    rank = adapter.rank(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ValueError(
            f"The adapter's matrices of {module} have shapes {list(a.shape)} and {list(b.shape)}; "
            f"they must be [{rank}, inputs] and [outputs, {rank}]."
        )
    return Factors(a, b, adapter.scale(module))


def canonical(name: str) -> str:
    """Return this model's name of a tensor that any checkpoint or fine-tune names."""
    return TENSOR_NAMES.apply_list([name.removeprefix(_PEFT)])[0]


def join_names(names: Iterable[str], most: int = 4) -> str:
    """Return some names for a sentence, in order, and how many others there are."""
    first, others = (ordered := sorted(names))[:most], ordered[most:]
    return ", ".join(first) + (f" and {len(others)} more" if others else "")
