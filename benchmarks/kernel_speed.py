"""Times the kernels and other ways to compute the same on a GPU, and compares them with the device's limits.

    python -m benchmarks.kernel_speed

Rows go to benchmarks/results/kernel_speed.jsonl, or to the folder that --output names. Beside each
time stands its floor: the larger of the bytes that must move over the measured copy bandwidth and
the operations over the measured rate of matrix products. A way that computes something else than
this package is not timed. Needs no vLLM, and no more than --seconds.
"""

import argparse
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import harness
from benchmarks import kernel_candidates as candidates
from vllm_videollava.decoding.pixels import IMAGE_MEAN, IMAGE_STD
from vllm_videollava.kernels import reference
from vllm_videollava.kernels.add_norm import add_norm
from vllm_videollava.kernels.frame_patch_embed import frame_patch_embed, padded_depth
from vllm_videollava.kernels.temporal_attention import launch_attention, temporal_attention

OURS = "this package"
# Frames of one encoder call in vLLM: one clip; three and seven clips, its limits on such a GPU; many.
FRAMES = (8, 24, 56, 256)
# Several times the L2 cache of any GPU.
BYTES_OF_INPUTS = 512 * 2**20
LARGEST_DISAGREEMENT = 0.02
TILES = ((128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 128, 64, 4, 4), (128, 128, 32, 4, 4))
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
    """Ways to compute one thing, with what it must cost.

    Attributes:
        ways: by name, each takes what `make_input` makes.
        bytes: that must move.
        is_one_result: whether the ways must agree; rates of different types need not.
    """

    name: str
    ways: dict[str, Way]
    make_input: Callable[[], Any]
    bytes: int
    operations: int
    is_one_result: bool = True


def patch_embed(frames: int, shape: Shape, dtype: torch.dtype, device: str) -> Case:
    depth = 3 * shape.patch**2
    weights = (
        torch.randn(shape.features, 3, shape.patch, shape.patch, dtype=dtype, device=device) / depth**0.5,
        torch.randn(shape.features, dtype=dtype, device=device),
        torch.randn(shape.positions, shape.features, dtype=dtype, device=device),
        torch.ones(shape.features, dtype=dtype, device=device),
        torch.zeros(shape.features, dtype=dtype, device=device),
    )
    options = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD, "eps": 1e-5}

    def by_package(frames: Frames) -> torch.Tensor:
        return frame_patch_embed(frames.pixels, *weights, **options)

    plain = partial(_plain_patch_embed, weights=weights, shape=shape)
    compiled = torch.compile(plain, dynamic=False)
    ways: dict[str, Way] = {OURS: by_package, "PyTorch": plain, "torch.compile": compiled}
    folded = candidates.fold(*weights, **options)
    ways |= _ways_with_bytes(folded)
    make_input = partial(_random_frames, frames, shape, device)
    rows = frames * shape.positions
    moved = frames * 3 * shape.size**2 + weights[0].nbytes + rows * shape.features * weights[0].element_size()
    return Case(f"frame_patch_embed, {frames} frames", ways, make_input, moved, 2 * rows * shape.features * depth)


class Frames(NamedTuple):
    """Frames as pixels, uint8 `[F, 3, H, W]`, and unfolded, as a processor could make them."""

    pixels: torch.Tensor
    rows: torch.Tensor


def _random_frames(frames: int, shape: Shape, device: str) -> Frames:
    pixels = torch.randint(0, 256, (frames, 3, shape.size, shape.size), dtype=torch.uint8, device=device)
    return Frames(pixels, candidates.unfold_on_cpu(pixels, shape.patch))


def _plain_patch_embed(frames: Frames, weights: tuple[torch.Tensor, ...], shape: Shape) -> torch.Tensor:
    weight, class_embedding, positions, norm_weight, norm_bias = weights
    mean, std = _mean_and_std(frames.pixels.device)
    pixels = ((frames.pixels.float() / 255 - mean) / std).to(weight.dtype)
    patches = F.conv2d(pixels, weight, stride=shape.patch).flatten(2).transpose(1, 2)
    tokens = torch.cat([class_embedding.expand(len(patches), 1, -1), patches], dim=1)
    return F.layer_norm(tokens + positions, tokens.shape[-1:], norm_weight, norm_bias, 1e-5)


_CONSTANTS: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}


def _mean_and_std(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Made once, because a graph cannot capture copies from the CPU.
    if device not in _CONSTANTS:
        mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
        _CONSTANTS[device] = mean, std
    return _CONSTANTS[device]


def _ways_with_bytes(folded: candidates.Folded) -> dict[str, Way]:
    def by_bytes(frames: Frames, tile: tuple[int, ...]) -> torch.Tensor:
        return candidates.by_bytes(frames.rows, folded, tile)

    ways: dict[str, Way] = {"bytes, cuBLAS, norm": lambda frames: candidates.by_bytes_and_cublas(frames.rows, folded)}
    return ways | {"bytes, Triton {}x{}x{}/{}, norm".format(*tile): partial(by_bytes, tile=tile) for tile in TILES}


def over_time(frames: int, shape: Shape, dtype: torch.dtype, device: str) -> Case:
    options = {
        "num_frames": shape.num_frames,
        "num_heads": shape.heads,
        "scale": (shape.features // shape.heads) ** -0.5,
    }
    compiled = torch.compile(reference.temporal_attention, dynamic=False)

    def with_flash_attention(states: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return reference.temporal_attention(*states.chunk(3, -1), **options)

    ways: dict[str, Way] = {
        OURS: lambda states: temporal_attention(*states.chunk(3, -1), **options),
        "SDPA with transposes": lambda states: reference.temporal_attention(*states.chunk(3, -1), **options),
        "torch.compile": lambda states: compiled(*states.chunk(3, -1), **options),
        "FlashAttention with transposes": with_flash_attention,
    }
    for rows, warps in ((32, 4), (32, 1), (16, 1), (64, 4)):
        blocks = {"block_rows": rows, "num_warps": warps}
        ways[f"{rows} rows, warps: {warps}"] = lambda states, blocks=blocks: launch_attention(
            *states.chunk(3, -1), **options, **blocks
        )
    make_input = partial(torch.randn, frames, shape.positions, 3 * shape.features, dtype=dtype, device=device)
    elements = frames * shape.positions * shape.features
    moved = 4 * elements * dtype.itemsize
    return Case(f"temporal_attention, {frames} frames", ways, make_input, moved, 4 * elements * shape.num_frames)


def sum_and_norm(frames: int, shape: Shape, dtype: torch.dtype, device: str) -> Case:
    weights = (
        torch.randn(1, shape.num_frames, shape.features, dtype=dtype, device=device),
        torch.ones(shape.features, dtype=dtype, device=device),
        torch.zeros(shape.features, dtype=dtype, device=device),
    )
    compiled = torch.compile(reference.add_norm, dynamic=False)
    ways: dict[str, Way] = {
        OURS: lambda states: add_norm(states, *weights, eps=1e-5),
        "PyTorch": lambda states: reference.add_norm(states, *weights, eps=1e-5),
        "torch.compile": lambda states: compiled(states, *weights, eps=1e-5),
    }
    shape_of_input = frames, shape.positions, shape.features
    moved = 3 * frames * shape.positions * shape.features * dtype.itemsize
    make_input = partial(torch.randn, *shape_of_input, dtype=dtype, device=device)
    return Case(f"add_norm, {frames} frames", ways, make_input, moved, 0)


class Layer(NamedTuple):
    """The weights of one encoder layer; pairs are of weight and bias."""

    temporal_embedding: torch.Tensor
    temporal_norm: tuple[torch.Tensor, torch.Tensor]
    temporal_projections: tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    norm1: tuple[torch.Tensor, torch.Tensor]
    projections: tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    norm2: tuple[torch.Tensor, torch.Tensor]
    mlp: tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def random_layer(shape: Shape, dtype: torch.dtype, device: str) -> Layer:
    width = shape.features

    def random(*sizes: int) -> torch.Tensor:
        return 0.02 * torch.randn(*sizes, dtype=dtype, device=device)

    def linear(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        return random(outputs, inputs), random(outputs)

    def norm() -> tuple[torch.Tensor, torch.Tensor]:
        return 1 + random(width), random(width)

    return Layer(
        random(1, shape.num_frames, width),
        norm(),
        (linear(width, 3 * width), linear(width, width)),
        norm(),
        (linear(width, 3 * width), linear(width, width)),
        norm(),
        (linear(width, 4 * width), linear(4 * width, width)),
    )


def plain_layer(states: torch.Tensor, layer: Layer, shape: Shape) -> torch.Tensor:
    """One encoder layer in PyTorch alone."""
    residual, normed = reference.add_norm(states, layer.temporal_embedding, *layer.temporal_norm, eps=1e-5)
    projection = F.linear(normed, *layer.temporal_projections[0]).chunk(3, -1)
    attended = reference.temporal_attention(*projection, **_attention_options(shape))
    states = residual + F.linear(attended, *layer.temporal_projections[1])
    states = states + _attend(F.layer_norm(states, states.shape[-1:], *layer.norm1), layer, shape)
    return states + _mlp(F.layer_norm(states, states.shape[-1:], *layer.norm2), layer)


def layer_with_kernels(states: torch.Tensor, layer: Layer, shape: Shape) -> torch.Tensor:
    """One encoder layer as in this package, but with PyTorch's attention over positions."""
    states, normed = add_norm(states, layer.temporal_embedding, *layer.temporal_norm, eps=1e-5)
    states, normed = add_norm(states, _attend_over_time(normed, layer, shape), *layer.norm1, eps=1e-5)
    states, normed = add_norm(states, _attend(normed, layer, shape), *layer.norm2, eps=1e-5)
    return states + _mlp(normed, layer)


def _attention_options(shape: Shape) -> dict[str, Any]:
    return {
        "num_frames": shape.num_frames,
        "num_heads": shape.heads,
        "scale": (shape.features // shape.heads) ** -0.5,
    }


def _attend_over_time(normed: torch.Tensor, layer: Layer, shape: Shape) -> torch.Tensor:
    projection = F.linear(normed, *layer.temporal_projections[0]).chunk(3, -1)
    return F.linear(temporal_attention(*projection, **_attention_options(shape)), *layer.temporal_projections[1])


def _attend(normed: torch.Tensor, layer: Layer, shape: Shape) -> torch.Tensor:
    projection = F.linear(normed, *layer.projections[0])
    query, key, value = (x.unflatten(-1, (shape.heads, -1)).transpose(1, 2) for x in projection.chunk(3, -1))
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return F.linear(attended, *layer.projections[1])


def _mlp(normed: torch.Tensor, layer: Layer) -> torch.Tensor:
    return F.linear(F.gelu(F.linear(normed, *layer.mlp[0])), *layer.mlp[1])


LAYERS = {
    OURS: layer_with_kernels,
    "PyTorch with SDPA": plain_layer,
}


def one_layer(frames: int, shape: Shape, dtype: torch.dtype, device: str) -> Case:
    layer = random_layer(shape, dtype, device)
    ways: dict[str, Way] = {name: partial(way, layer=layer, shape=shape) for name, way in LAYERS.items()}
    ways["torch.compile"] = torch.compile(ways["PyTorch with SDPA"], dynamic=False)
    make_input = partial(torch.randn, frames, shape.positions, shape.features, dtype=dtype, device=device)
    return _encoder_case(f"encoder layer, {frames} frames", ways, make_input, [layer], frames, shape, dtype)


def all_layers(frames: int, shape: Shape, dtype: torch.dtype, device: str) -> Case:
    layers = [random_layer(shape, dtype, device) for _ in range(shape.layers)]

    def encode(states: torch.Tensor, way: Callable[..., torch.Tensor]) -> torch.Tensor:
        for layer in layers:
            states = way(states, layer, shape)
        return states

    ways: dict[str, Way] = {name: partial(encode, way=way) for name, way in LAYERS.items()}
    make_input = partial(torch.randn, frames, shape.positions, shape.features, dtype=dtype, device=device)
    return _encoder_case(f"video encoder, {frames} frames", ways, make_input, layers, frames, shape, dtype)


def _encoder_case(name: str, ways, make_input, layers: list[Layer], frames: int, shape: Shape, dtype) -> Case:
    rows = frames * shape.positions
    attention = 4 * rows * (shape.positions + shape.num_frames) * shape.features * len(layers)
    matrices = len(layers) * 16 * shape.features**2
    moved = (matrices + 2 * rows * shape.features) * dtype.itemsize
    return Case(name, ways, make_input, moved, 2 * rows * matrices + attention)


def product(frames: int, shape: Shape, dtype: torch.dtype, device: str) -> Case:
    """The matrix product in the patch embedding alone: what its speed is to be measured by."""
    rows, depth = frames * (shape.positions - 1), padded_depth(shape.patch)
    half, brain = (torch.randn(shape.features, depth, dtype=x, device=device) for x in (torch.half, torch.bfloat16))
    ways: dict[str, Way] = {
        OURS: lambda x: x[0] @ half.T,
        "bfloat16": lambda x: x[1] @ brain.T,
    }

    def make_input() -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.randn(rows, depth, device=device)
        return values.half(), values.bfloat16()

    moved = (rows * depth + half.numel() + rows * shape.features) * 2
    operations = 2 * rows * depth * shape.features
    return Case(f"cuBLAS product, {frames} frames", ways, make_input, moved, operations, is_one_result=False)


# Most valuable first, since time may run out.
CASES: tuple[tuple[Callable[..., Case], tuple[int, ...]], ...] = (
    (product, FRAMES),
    (patch_embed, FRAMES),
    (over_time, FRAMES),
    (sum_and_norm, FRAMES),
    (one_layer, FRAMES[:3]),
    (all_layers, FRAMES[:2]),
)


def disagreement(case: Case, inputs: Any) -> dict[str, float]:
    """Return norm(way - this package) / norm(this package) by way; infinity where one fails."""
    ours = _flat(case.ways[OURS](inputs))
    return {name: _distance(way, inputs, ours) for name, way in case.ways.items()}


def _distance(way: Way, inputs: Any, ours: torch.Tensor) -> float:
    try:
        return float((_flat(way(inputs)) - ours).norm() / ours.norm())
    except Exception:
        # If one way fails on this GPU, the others are still timed.
        traceback.print_exc()
        return float("inf")


def _flat(results: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    results = results if isinstance(results, tuple) else (results,)
    return torch.cat([result.flatten() for result in results]).float()


def measure(case: Case, floor: float, seconds: float) -> Iterator[dict[str, Any]]:
    """Time the ways of a case that agree."""
    copies = max(1, min(64, BYTES_OF_INPUTS // case.bytes))
    inputs = [case.make_input() for _ in range(copies)]
    distances = disagreement(case, inputs[0]) if case.is_one_result else dict.fromkeys(case.ways, 0.0)
    for name, distance in distances.items():
        if not distance <= LARGEST_DISAGREEMENT:
            print(f"{case.name}: {name} is off by {distance:.3g} and not timed.", flush=True)
    ways = {name: way for name, way in case.ways.items() if distances[name] <= LARGEST_DISAGREEMENT}
    for metric, time_them in (
        ("time", harness.interleave_on_gpu),
        ("time, launched one by one", harness.interleave_launches),
    ):
        for way, times in time_them(ways, inputs, seconds).items():
            yield harness.row(case.name, way, metric, "s", times)
    yield harness.row(case.name, "floor", "time", "s", [floor])


def rates(dtype: torch.dtype) -> dict[str, list[float]]:
    """Bytes per second of a copy, read and written, and operations per second of a matrix product."""
    data = torch.randn(2**28, device="cuda")
    # Copied by a kernel: in a graph, `copy_` uses the copy engine, which is slower.
    copy = harness.interleave_on_gpu({"copy": partial(torch.neg, out=torch.empty_like(data))}, [data], 1)["copy"]
    matrix = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    squares = harness.interleave_on_gpu({"product": lambda x: x @ x}, [matrix], 1)["product"]
    return {
        "copy bandwidth": [2 * data.nbytes / seconds for seconds in copy],
        "matrix rate": [2 * 8192**3 / seconds for seconds in squares],
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder for kernel_speed.jsonl")
    parser.add_argument("--seconds", type=float, default=480, help="time after which no further case begins")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU, and kernels can only be timed on one. benchmarks.kernel_resources needs none.")
    path = args.output / "kernel_speed.jsonl"
    path.unlink(missing_ok=True)
    begin, dtype = time.perf_counter(), torch.bfloat16
    measured = rates(dtype)
    bandwidth, matrix_rate = (sorted(values)[len(values) // 2] for values in measured.values())
    units = {"copy bandwidth": "B/s", "matrix rate": "FLOP/s"}
    harness.append_rows(path, [harness.row("device", "PyTorch", x, units[x], measured[x]) for x in units])
    print(f"{bandwidth / 1e12:.2f} TB/s, {matrix_rate / 1e12:.0f} TFLOP/s", flush=True)
    for make, frames in ((make, frames) for make, sizes in CASES for frames in sizes):
        if time.perf_counter() - begin > args.seconds:
            print(f"{make.__name__}, {frames} frames: no time left.", flush=True)
            continue
        torch.compiler.reset()
        case = make(frames, Shape(), dtype, "cuda")
        floor = max(case.bytes / bandwidth, case.operations / matrix_rate)
        rows = list(measure(case, floor, seconds=1))
        harness.append_rows(path, rows)
        _show(rows, time.perf_counter() - begin)
    print(path)


def _show(rows: list[dict[str, Any]], seconds: float) -> None:
    print(f"--- {rows[0]['case']}, after {seconds:.0f} s: microseconds in a graph, launched one by one")
    for way, metrics in itertools.groupby(sorted(rows, key=lambda row: row["way"]), key=lambda row: row["way"]):
        print(f"{way:<44}" + "".join(f"{row['p50'] * 1e6:>10.1f}" for row in metrics), flush=True)


if __name__ == "__main__":
    main()
