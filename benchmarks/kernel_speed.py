"""The kernels beside PyTorch's and vLLM's ways on a GPU, and how far each is from the device's limits.

    python benchmarks/kernel_speed.py

Rows go to benchmarks/results/kernel_speed.jsonl. Beside each time stands its floor: the larger of the
bytes that must move over the measured copy bandwidth and the operations over the measured rate of
matrix products. Nothing is timed unless all ways agree.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import harness
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vllm_videollava.kernels import reference
from vllm_videollava.kernels.frame_patch_embed import frame_patch_embed
from vllm_videollava.kernels.temporal_attention import temporal_attention
from vllm_videollava.kernels.temporal_embed_norm import temporal_embed_norm
from vllm_videollava.pixels import IMAGE_MEAN, IMAGE_STD

FRAMES = (8, 32, 256, 1024)
ROUNDS = 50
# Several times the L2 cache of any GPU.
BYTES_OF_INPUTS = 512 * 2**20
HAS_VLLM = importlib.util.find_spec("vllm") is not None
Way = Callable[[Any], Any]


class Shape(NamedTuple):
    """A tower's sizes; those of LanguageBind's if none are given."""

    features: int = 1024
    heads: int = 16
    size: int = 224
    patch: int = 14
    num_frames: int = 8
    layers: int = 23

    @property
    def positions(self) -> int:
        return 1 + (self.size // self.patch) ** 2


class Case(NamedTuple):
    """Ways to compute one thing, on several inputs, with what it must cost."""

    name: str
    ways: dict[str, Way]
    inputs: list[Any]
    bytes: int
    operations: int


def patch_embed(frames: int, shape: Shape, dtype: torch.dtype, device: str, copies: int) -> Case:
    depth = 3 * shape.patch**2
    weights = (
        torch.randn(shape.features, 3, shape.patch, shape.patch, dtype=dtype, device=device) / depth**0.5,
        torch.randn(shape.features, dtype=dtype, device=device),
        torch.randn(shape.positions, shape.features, dtype=dtype, device=device),
        torch.ones(shape.features, dtype=dtype, device=device),
        torch.zeros(shape.features, dtype=dtype, device=device),
    )
    options = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD, "eps": 1e-5}
    compiled = torch.compile(reference.frame_patch_embed)
    ways = {
        "this package": lambda inputs: frame_patch_embed(inputs, *weights, **options),
        "PyTorch": lambda inputs: reference.frame_patch_embed(inputs, *weights, **options),
        "torch.compile": lambda inputs: compiled(inputs, *weights, **options),
    }
    if HAS_VLLM:
        ways["vLLM's CLIPVisionEmbeddings"] = vllm_patch_embed(shape, weights)
    pixels = [
        torch.randint(0, 256, (frames, 3, shape.size, shape.size), dtype=torch.uint8, device=device)
        for _ in range(copies)
    ]
    rows = frames * shape.positions
    moved = pixels[0].nbytes + weights[0].nbytes + rows * shape.features * weights[0].element_size()
    return Case(f"frame_patch_embed, {frames} frames", ways, pixels, moved, 2 * rows * shape.features * depth)


def vllm_patch_embed(shape: Shape, weights: tuple[torch.Tensor, ...]) -> Way:
    from transformers import CLIPVisionConfig
    from vllm.model_executor.models.clip import CLIPVisionEmbeddings

    weight, class_embedding, positions, norm_weight, norm_bias = weights
    sizes = {"image_size": shape.size, "patch_size": shape.patch, "num_attention_heads": shape.heads}
    config = CLIPVisionConfig(hidden_size=shape.features, **sizes)
    with vllm_on_one_device():
        embeddings = CLIPVisionEmbeddings(config).to(weight)
    tensors = {
        "class_embedding": class_embedding,
        "patch_embedding.weight": weight,
        "position_embedding.weight": positions,
    }
    embeddings.load_state_dict(tensors, strict=False)
    mean, std = (torch.tensor(x, device=weight.device).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))

    @torch.no_grad()
    def embed(frames: torch.Tensor) -> torch.Tensor:
        pixels = ((frames.float() / 255 - mean) / std).to(weight.dtype)
        return F.layer_norm(embeddings(pixels), (shape.features,), norm_weight, norm_bias, 1e-5)

    return embed


@contextmanager
def vllm_on_one_device() -> Iterator[None]:
    """Let vLLM's layers be made outside of its engine."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )

    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, backend)
        initialize_model_parallel()
        yield
        cleanup_dist_env_and_memory()


def over_time(frames: int, shape: Shape, dtype: torch.dtype, device: str, copies: int) -> Case:
    options = {
        "num_frames": shape.num_frames,
        "num_heads": shape.heads,
        "scale": (shape.features // shape.heads) ** -0.5,
    }
    compiled = torch.compile(reference.temporal_attention)

    def with_flash_attention(states: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return reference.temporal_attention(*states.chunk(3, -1), **options)

    ways = {
        "this package": lambda states: temporal_attention(*states.chunk(3, -1), **options),
        "SDPA with transposes": lambda states: reference.temporal_attention(*states.chunk(3, -1), **options),
        "torch.compile": lambda states: compiled(*states.chunk(3, -1), **options),
        "FlashAttention with transposes": with_flash_attention,
    }
    projections = [
        torch.randn(frames, shape.positions, 3 * shape.features, dtype=dtype, device=device) for _ in range(copies)
    ]
    operations = 4 * frames * shape.positions * shape.num_frames * shape.features
    return Case(f"temporal_attention, {frames} frames", ways, projections, projections[0].nbytes * 4 // 3, operations)


def before_time(frames: int, shape: Shape, dtype: torch.dtype, device: str, copies: int) -> Case:
    weights = (
        torch.randn(1, shape.num_frames, shape.features, dtype=dtype, device=device),
        torch.ones(shape.features, dtype=dtype, device=device),
        torch.zeros(shape.features, dtype=dtype, device=device),
    )
    compiled = torch.compile(reference.temporal_embed_norm)
    ways = {
        "this package": lambda states: temporal_embed_norm(states, *weights, eps=1e-5),
        "PyTorch": lambda states: reference.temporal_embed_norm(states, *weights, eps=1e-5),
        "torch.compile": lambda states: compiled(states, *weights, eps=1e-5),
    }
    states = [torch.randn(frames, shape.positions, shape.features, dtype=dtype, device=device) for _ in range(copies)]
    return Case(f"temporal_embed_norm, {frames} frames", ways, states, 3 * states[0].nbytes, 0)


def video_tower(frames: int, shape: Shape, dtype: torch.dtype, device: str, copies: int) -> Case:
    from vllm.model_executor.layers.linear import LinearBase

    from vllm_videollava.tower import LanguageBindTower
    from vllm_videollava.tower_config import tower_config

    config = tower_config(
        {
            "hidden_size": shape.features,
            "intermediate_size": 4 * shape.features,
            "num_hidden_layers": shape.layers + 1,
            "num_attention_heads": shape.heads,
            "image_size": shape.size,
            "patch_size": shape.patch,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "add_time_attn": True,
            "num_frames": shape.num_frames,
        }
    )
    with vllm_on_one_device():
        tower, unpacked = (LanguageBindTower(config, None, shape.layers, "video_tower") for _ in range(2))
    for parameter in tower.to(device, dtype).requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    # vLLM may pack weights in its own way, and drop them as they were.
    unpacked.to(device, dtype).requires_grad_(False).load_state_dict(tower.state_dict())
    plain = partial(plain_tower, unpacked, shape)
    for module in tower.modules():
        if isinstance(module, LinearBase):
            module.quant_method.process_weights_after_loading(module)
    ways = {"this package": tower, "PyTorch with SDPA": plain, "torch.compile": torch.compile(plain)}
    pixels = [
        torch.randint(0, 256, (frames, 3, shape.size, shape.size), dtype=torch.uint8, device=device)
        for _ in range(copies)
    ]
    parameters = list(unpacked.encoder.parameters())
    rows, matrices = frames * shape.positions, sum(x.numel() for x in parameters if x.ndim == 2)
    attention = 4 * rows * (shape.positions + shape.num_frames) * shape.features * shape.layers
    moved = pixels[0].nbytes + sum(x.nbytes for x in parameters) + rows * shape.features * parameters[0].element_size()
    return Case(f"video tower, {frames} frames", ways, pixels, moved, 2 * rows * matrices + attention)


def plain_tower(tower: Any, shape: Shape, frames: torch.Tensor) -> torch.Tensor:
    """The tower in PyTorch alone, with the weights of ours."""
    embeddings, norm = tower.embeddings, tower.pre_layrnorm
    states = reference.frame_patch_embed(
        frames,
        embeddings.patch_embedding.weight,
        embeddings.class_embedding,
        embeddings.position_embedding.weight,
        norm.weight,
        norm.bias,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        eps=norm.eps,
    )
    for layer in tower.encoder.layers:
        states = states.unflatten(0, (-1, shape.num_frames)).transpose(1, 2).flatten(0, 1) + layer.temporal_embedding
        states = states + _plain_attention(layer.temporal_attn, shape.heads, layer.temporal_layer_norm1(states))
        states = states.unflatten(0, (-1, shape.positions)).transpose(1, 2).flatten(0, 1)
        states = states + _plain_attention(layer.self_attn, shape.heads, layer.layer_norm1(states))
        hidden = F.gelu(F.linear(layer.layer_norm2(states), layer.mlp.fc1.weight, layer.mlp.fc1.bias))
        states = states + F.linear(hidden, layer.mlp.fc2.weight, layer.mlp.fc2.bias)
    return states


def _plain_attention(attention: Any, heads: int, states: torch.Tensor) -> torch.Tensor:
    projection = F.linear(states, attention.qkv_proj.weight, attention.qkv_proj.bias)
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in projection.chunk(3, -1))
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return F.linear(attended, attention.out_proj.weight, attention.out_proj.bias)


CASES = (patch_embed, over_time, before_time, video_tower)


def disagreement(case: Case) -> float:
    """The largest norm(way - this package) / norm(this package) of the ways on the first input."""
    ours = _flat(case.ways["this package"](case.inputs[0]))
    return max(float((_flat(way(case.inputs[0])) - ours).norm() / ours.norm()) for way in case.ways.values())


def _flat(results: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    results = results if isinstance(results, tuple) else (results,)
    return torch.cat([result.flatten() for result in results]).float()


def rates(dtype: torch.dtype) -> dict[str, list[float]]:
    """Bytes per second of a copy, read and written, and operations per second of a matrix product."""
    data = torch.randn(2**28, device="cuda")
    copy = harness.interleave_on_gpu({"copy": torch.empty_like(data).copy_}, [data], ROUNDS)["copy"]
    matrix = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    product = harness.interleave_on_gpu({"product": lambda x: x @ x}, [matrix], ROUNDS)["product"]
    return {
        "copy bandwidth": [2 * data.nbytes / seconds for seconds in copy],
        "matrix rate": [2 * 8192**3 / seconds for seconds in product],
    }


@torch.inference_mode()
def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU: kernels are timed on one only. benchmarks/kernel_resources.py needs none.")
    dtype = torch.bfloat16
    measured = rates(dtype)
    bandwidth, matrix_rate = (sorted(values)[len(values) // 2] for values in measured.values())
    rows = [
        harness.row("device", "PyTorch", metric, unit, measured[metric])
        for metric, unit in (("copy bandwidth", "B/s"), ("matrix rate", "FLOP/s"))
    ]
    for make in CASES:
        if make is video_tower and not HAS_VLLM:
            print("The tower is not timed: its layers are vLLM's, which is not installed.")
            continue
        for frames in FRAMES:
            torch.compiler.reset()
            single = make(frames, Shape(), dtype, "cuda", 1)
            case = make(frames, Shape(), dtype, "cuda", max(1, BYTES_OF_INPUTS // single.inputs[0].nbytes))
            if (worst := disagreement(case)) > 0.02:
                sys.exit(f"{case.name}: the ways disagree by {worst:.3g}; nothing is timed.")
            for way, seconds in harness.interleave_on_gpu(case.ways, case.inputs, ROUNDS).items():
                rows.append(harness.row(case.name, way, "time", "s", seconds))
            floor = max(case.bytes / bandwidth, case.operations / matrix_rate)
            rows.append(harness.row(case.name, "floor", "time", "s", [floor]))
            for row in rows[-1 - len(case.ways) :]:
                print(f"{row['case']:<32}{row['way']:<32}{row['p50'] * 1e6:>10.1f} us", flush=True)
    print(harness.write_rows("kernel_speed", rows))


if __name__ == "__main__":
    main()
