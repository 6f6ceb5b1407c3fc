"""vLLM serves the tiny checkpoint, quantised, with right answers."""

from pathlib import Path

import pytest
import torch
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.platforms import current_platform

from benchmarks.tiny_accuracy import answer
from vllm_videollava import tiny_checkpoint
from vllm_videollava.conversion.convert import convert
from vllm_videollava.tiny.generator import Example, write_examples


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


@pytest.fixture
def engine_in_this_process(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # The loader asks for an accelerator; without one there is nothing to empty.
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    if current_platform.is_cpu() and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        monkeypatch.setitem(linear._POSSIBLE_KERNELS, current_platform._enum, [PlainKernel])


@pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM's build is not that for the CPU")
def test_vllms_cpu_build_has_a_kernel_for_4_bits_with_avx_512_only():
    current_platform.import_kernels()
    has_avx_512 = "avx512f" in Path("/proc/cpuinfo").read_text()
    assert hasattr(torch.ops._C, "cpu_gemm_wna16") == has_avx_512


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return write_examples(tmp_path_factory.mktemp("examples"), 6, 6, seed=5)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_tiny_checkpoint_still_answers(engine_in_this_process, bits, examples, tmp_path):
    from vllm import LLM

    folder = tmp_path / "tiny"
    convert(str(tiny_checkpoint()), folder, bits=bits, dtype="bfloat16")
    llm = LLM(
        str(folder),
        max_model_len=1024,
        enforce_eager=True,
        allowed_local_media_path="/",
        distributed_executor_backend="uni",
    )
    try:
        answers = answer(llm, examples)
    finally:
        llm.llm_engine.engine_core.shutdown()
    right = [given == example.question.answer for given, example in zip(answers, examples, strict=True)]
    print(f"{sum(right)} of {len(right)} answers are right with {bits} bits")
    assert sum(right) > 0.9 * len(right)
