"""Makes the tensors of a converted checkpoint, one after another."""

from collections.abc import Callable, Iterator

import torch

from vllm_videollava.conversion.quantization import is_quantised, quantize
from vllm_videollava.conversion.source import Model


class Output:
    """The tensors of a converted checkpoint, each made when it is needed.

    Args:
        model: what they are made from.
        rename: turns this model's names into those of the new checkpoint.
        dtype: of all that is not quantised, and of scales.
        bits: of LLaMA's linear layers, or None if they are not quantised.

    Attributes:
        specs: shape and dtype of each tensor by its new name, as tensors of which only the smallest have values.
    """

    def __init__(self, model: Model, rename: Callable[[str], str], dtype: torch.dtype, bits: int | None) -> None:
        self._model, self._rename, self._dtype, self._bits = model, rename, dtype, bits
        self.specs = {
            new: spec for name, stored in model.items() for new, spec in self._convert(name, stored.spec).items()
        }

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all tensors by their new names.

        Raises:
            ValueError: a number is too large for the dtype, or was not finite before.
        """
        for name, stored in self._model.items():
            weight = stored.read()
            # Also if the weight is quantised, whose scales are of that dtype.
            if not all(extreme.isfinite() for extreme in weight.to(self._dtype).aminmax()):
                raise ValueError(
                    f"The checkpoint's tensor {stored.name} has values that are not finite in {self._dtype}; "
                    "choose another --dtype, or repair the checkpoint."
                )
            yield from self._convert(name, weight).items()

    def _convert(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._bits and is_quantised(name):
            parts = quantize(weight.float(), self._bits, self._dtype)
        else:
            parts = {"weight": weight.to(self._dtype)}
        new = self._rename(name)
        module = new.removesuffix("weight")
        return {new if part == "weight" else module + part: tensor for part, tensor in parts.items()}
