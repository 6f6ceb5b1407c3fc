"""Times the towers and the projector inside vLLM on a GPU, launched kernel by kernel and in CUDA graphs.

    python -m benchmarks.encoder_speed

They have the 7B model's shape and random weights; the LLaMA behind them has two layers, since it is not timed. A
case is not timed if graphs give other results. Rows go to benchmarks/results/encoder_speed.jsonl, or to the
folder that --output names.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import harness, models

EAGER, GRAPHS = "kernel by kernel", "CUDA graphs"
CASES = (("video", 1), ("video", 3), ("image", 1), ("video", 7), ("image", 8))
LARGEST_DISAGREEMENT = 0.02
ROUNDS = 20


def compare(model: nn.Module, config: Any, modality: str, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Capture the encoders as vLLM does, check and time them; yield rows, with seconds from call to result.

    Raises:
        ValueError: results hardly depend on pixels, so that a check of them says nothing.
    """
    from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

    device = next(model.parameters()).device
    manager = EncoderCudaGraphManager(config, device, config.model_config.dtype, model)
    _capture(manager, device)
    case = f"{count} {modality}{'s' if count > 1 else ''}"
    inputs, others = (_random_inputs(model, modality, count, device) for _ in range(2))
    expected = _embed(partial(model.embed_multimodal, **inputs))
    if not _distance(expected, _embed(partial(model.embed_multimodal, **others))) > 10 * LARGEST_DISAGREEMENT:
        raise ValueError(f"{case}: other pixels give almost the same result.")
    ways: dict[str, Callable[[], Any]] = {
        EAGER: partial(model.embed_multimodal, **inputs),
        GRAPHS: partial(manager.execute, inputs),
    }
    distance = _distance(expected, _embed(ways[GRAPHS]))
    yield harness.row(case, GRAPHS, "relative distance", "", [distance])
    if distance <= LARGEST_DISAGREEMENT:
        for way, samples in _time(ways, rounds).items():
            yield harness.row(case, way, "time", "s", [sample.wall for sample in samples])


def _random_inputs(model: nn.Module, modality: str, count: int, device: torch.device) -> dict[str, torch.Tensor]:
    shape = model.config.pixel_format.input_shapes[modality]
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, device=device)
    return {f"pixel_values_{modality}s": pixels}


def _embed(way: Callable[[], Any]) -> torch.Tensor:
    return torch.cat(list(way())).float()


def _capture(manager: Any, device: torch.device) -> None:
    if device.type == "cpu":
        manager.capture(graph_pool=None)
        return
    from vllm.distributed.parallel_state import graph_capture

    with graph_capture(device=device):
        manager.capture(graph_pool=torch.cuda.graph_pool_handle())
    torch.cuda.synchronize()


def _distance(expected: torch.Tensor, result: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def _time(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[harness.Sample]]:
    return harness.interleave({name: partial(_finish, way) for name, way in ways.items()}, rounds)


def _finish(way: Callable[[], Any]) -> None:
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def redraw_weights(model: nn.Module) -> None:
    """Draw weights again on a GPU, because those that vLLM draws are so small that results hardly depend on pixels."""
    for name, weight in model.named_parameters():
        if name.startswith(("image_tower", "video_tower", "multi_modal_projector")):
            is_scale = "norm" in name and name.endswith("weight")
            weight.normal_(float(is_scale), 0.05)


@torch.inference_mode()
def compare_in_worker(worker: Any, modality: str, count: int) -> list[dict[str, Any]]:
    """Run `compare` in a process of the engine."""
    from vllm.config import set_current_vllm_config

    model = worker.get_model()
    redraw_weights(model)
    with set_current_vllm_config(worker.vllm_config):
        return list(compare(model, worker.vllm_config, modality, count, ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder for encoder_speed.jsonl")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU, and only one has CUDA graphs.")
    # Lets vLLM send a function to its worker.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    from vllm import LLM

    path = args.output / "encoder_speed.jsonl"
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = models.write_original(Path(folder, "model"), models.SIZES["7B"]._replace(llama_layers=2))
        llm = LLM(str(checkpoint), load_format="dummy", max_model_len=4096, enforce_eager=True)
        for case in CASES:
            (rows,) = llm.collective_rpc(compare_in_worker, args=case)
            harness.append_rows(path, rows)
            for row in rows:
                print(*(row[key] for key in ("case", "way", "metric", "p50", "unit")), sep="  ", flush=True)
    print(path)


if __name__ == "__main__":
    main()
