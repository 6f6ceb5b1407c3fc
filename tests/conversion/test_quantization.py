"""Quantised weights are as close as the search promises, and vLLM quantises the same layers."""

import json

import pytest
import torch
from vllm.distributed.utils import verify_group_size_divides_partition
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from helpers.checkpoints import write_transformers_checkpoint
from helpers.loading import model_loading
from helpers.sources import weights, write_adapter
from vllm_videollava.conversion.convert import convert
from vllm_videollava.conversion.quantization import quantize

GROUP = 128
BITS = (4, 8)


def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the weight of one module, `[outputs, inputs]`, from what compressed-tensors stores of it."""
    scale = parts["weight_scale"].double()
    if "weight" in parts:
        return parts["weight"].double() * scale
    packed = parts["weight_packed"]
    integers = torch.stack([(packed >> 4 * place) & 15 for place in range(8)], dim=-1).flatten(1) - 8
    assert list(integers.shape) == parts["weight_shape"].tolist()
    return (integers.unflatten(1, (-1, GROUP)) * scale[..., None]).flatten(1)


def round_plainly(weight: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Round to the nearest integer, at the scale where the largest weight of a group is the largest integer."""
    groups = weight.double().unflatten(1, (-1, GROUP if bits == 4 else weight.shape[1]))
    most = 2 ** (bits - 1)
    scale = (groups.abs().amax(-1, keepdim=True) / (most - 0.5)).to(dtype).double()
    return ((groups / scale).round().clamp(-most, most - 1) * scale).flatten(1)


def group_errors(weight: torch.Tensor, other: torch.Tensor, bits: int) -> torch.Tensor:
    difference = (weight.double() - other).square()
    return difference.unflatten(1, (-1, GROUP if bits == 4 else weight.shape[1])).sum(-1)


def random_weight(*shape: int) -> torch.Tensor:
    """Draw numbers with some outliers, as trained weights have them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp() / 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("bits", "gain"), [(4, 0.92), (8, 0.99)])
def test_the_search_is_never_worse_than_plain_rounding(bits, gain, dtype):
    weight = random_weight(100, 4096)
    parts = quantize(weight, bits, dtype)
    assert parts["weight_scale"].dtype == dtype
    ours = group_errors(weight, dequantize(parts), bits)
    plain = group_errors(weight, round_plainly(weight, bits, dtype), bits)
    assert (ours <= plain * (1 + 1e-5)).all()
    assert ours.sum() < gain * plain.sum()


@pytest.mark.parametrize(("bits", "most"), [(4, 0.11), (8, 0.01)])
def test_the_error_of_normal_weights(bits, most):
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(1))
    error = (weight - dequantize(quantize(weight, bits, torch.float32))).norm() / weight.norm()
    assert most / 2 < error < most


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e4])
def test_numbers_of_unusual_size(bits, size):
    weight = size * random_weight(32, 128)
    parts = quantize(weight, bits, torch.float16)
    assert parts["weight_scale"].isfinite().all()
    assert (parts["weight_scale"] > 0).all()
    error = (weight - dequantize(parts)).abs().max()
    assert error <= max(0.15 * weight.abs().max(), 1e-4)


@pytest.fixture(scope="module", params=BITS)
def bits(request):
    return request.param


@pytest.fixture(scope="module")
def converted(bits, checkpoint, tmp_path_factory):
    """The random checkpoint, merged with an adapter; the folder and the weights that are quantised in it."""
    folder = tmp_path_factory.mktemp("quantised")
    changed = write_adapter(folder / "lora", checkpoint)
    convert(str(folder / "lora"), folder / "out", bits=bits, dtype="float16")
    return folder / "out", weights(checkpoint) | changed


def test_only_llamas_linear_layers_are_quantised(converted, bits):
    folder, expected = converted
    ours = weights(folder)
    quantised = {name for name in expected if name.startswith("model.layers.") and name.endswith("_proj.weight")}
    assert len(quantised) == 14
    for name, tensor in expected.items():
        if name in quantised:
            module = name.removesuffix("weight")
            parts = {key.removeprefix(module): ours.pop(key) for key in list(ours) if key.startswith(module)}
            plain = group_errors(tensor, round_plainly(tensor, bits, torch.float16), bits)
            assert (group_errors(tensor, dequantize(parts), bits) <= plain * (1 + 1e-5)).all()
        else:
            torch.testing.assert_close(ours.pop(name), tensor.half(), atol=0, rtol=0)
    assert not ours


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    with model_loading(tmp_path_factory.mktemp("rendezvous") / "file") as load:
        yield load


def methods(model) -> dict[str, str]:
    """Return how each linear layer of a model computes, by name."""
    return {
        name: type(module.quant_method).__name__
        for name, module in model.named_modules()
        if isinstance(module, (LinearBase, VocabParallelEmbedding))
    }


def assert_llama_is_quantised(model) -> None:
    quantised = {name for name, method in methods(model).items() if method == "CompressedTensorsLinearMethod"}
    others = methods(model).keys() - quantised
    assert quantised == {name for name in methods(model) if name.startswith("language_model.model.layers.")}
    assert len(quantised) == 8
    assert {"language_model.lm_head", "video_tower.encoder.layers.0.self_attn.qkv_proj"} <= others
    assert {"multi_modal_projector.layers.0", "image_tower.encoder.layers.1.mlp.fc1"} <= others


def test_vllm_quantises_the_same_layers(converted, load):
    assert_llama_is_quantised(load(converted[0]))


def test_a_quantised_checkpoint_in_transformers_format(bits, checkpoint, tmp_path, load):
    source = write_transformers_checkpoint(tmp_path / "hf", checkpoint)
    convert(str(source), tmp_path / "out", bits=bits)
    assert_llama_is_quantised(load(tmp_path / "out"))


def test_config_json_says_how(converted, bits):
    config = json.loads((converted[0] / "config.json").read_text())["quantization_config"]
    scheme = config["config_groups"]["group_0"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == {4: "pack-quantized", 8: "int-quantized"}[bits]
    assert (scheme["weights"]["num_bits"], scheme["weights"].get("group_size")) == {4: (4, GROUP), 8: (8, None)}[bits]
    assert ("input_activations" in scheme) == (bits == 8)


def test_vllm_cuts_the_7bs_groups_for_two_ranks_and_refuses_to_for_four():
    verify_group_size_divides_partition(11008 // 2, GROUP, "down_proj")
    with pytest.raises(ValueError, match="down_proj"):
        verify_group_size_divides_partition(11008 // 4, GROUP, "down_proj")
