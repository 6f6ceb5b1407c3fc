"""An engine in the test's process that can compute with 4-bit weights on any processor."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.platforms import current_platform


class PlainKernel(MPLinearKernel):
    """Multiplies with 4-bit weights in PyTorch; vLLM's CPU build has a kernel of its own, but for AVX-512 only."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, config) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        packed, scale, *_ = self._get_weight_params(layer)
        integers = torch.stack([(packed >> 4 * place) & 15 for place in range(8)], dim=-1).flatten(1) - 8
        groups = integers.unflatten(1, (-1, self.config.group_size))
        layer.plain_weight = (groups * scale[..., None]).flatten(1)
        assert list(layer.plain_weight.shape) == [*reversed(self.config.full_weight_shape)]

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return torch.nn.functional.linear(x, layer.plain_weight, bias)


@contextmanager
def plain_kernel_if_needed() -> Iterator[None]:
    """Let engines use `PlainKernel` where vLLM's build has no kernel; they run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # The loader asks for an accelerator; without one there is nothing to empty.
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        if current_platform.is_cpu() and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
            patch.setitem(linear._POSSIBLE_KERNELS, current_platform._enum, [PlainKernel])
        yield
