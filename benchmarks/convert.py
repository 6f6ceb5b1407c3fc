"""Processor time and memory of `vllm-videollava convert`, for a checkpoint of the 7B model's widths with few layers.

    python -m benchmarks.convert

Writes benchmarks/results/convert.jsonl. The weights are random, and LLaMA has 4
of its 32 layers; both towers are whole. Needs 12 GB on the disk.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from benchmarks.harness import row, write_rows
from benchmarks.models import SIZES, write_original
from vllm_videollava.checkpoints.config import register
from vllm_videollava.conversion.completeness import model_shapes

LAYERS = 4
WAYS = {"float16": [], "8 bits": ["--bits", "8"], "4 bits": ["--bits", "4"]}


def main() -> None:
    args = parse_args()
    samples: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source = Path(name) / "source"
        # In a process of its own: a process that starts another hands its peak of memory on.
        writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=(source,))
        writer.start()
        writer.join()
        for _ in range(args.rounds):
            for way, flags in WAYS.items():
                samples[way].append(measure(source, Path(name) / "out", flags))
                print(way, samples[way][-1], flush=True)
    metrics = (("processor time", "s"), ("peak memory", "MB"), ("written", "MB"))
    rows = [
        row(f"{LAYERS} layers of LLaMA", way, metric, unit, values)
        for way, of_way in samples.items()
        for (metric, unit), values in zip(metrics, zip(*of_way, strict=True), strict=True)
    ]
    print(f"Written to {write_rows('convert', rows)}")


def write_checkpoint(folder: Path) -> None:
    """Write a checkpoint in the original's format, float16, one file for each part of the model."""
    write_original(folder, SIZES["7B"]._replace(llama_layers=LAYERS))
    register()
    shapes = model_shapes(AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        parts.setdefault(name.split(".")[0], {})[name] = shape
    for number, part in enumerate(parts.values(), start=1):
        tensors = {name: (torch.randn(shape, generator=generator) / 50).half() for name, shape in part.items()}
        save_file(tensors, folder / f"model-{number:05}-of-{len(parts):05}.safetensors")


def measure(source: Path, out: Path, flags: list[str]) -> tuple[float, float, float]:
    """Convert once; return seconds of processor time, the peak of memory with mapped files in MB, and MB written."""
    command = [sys.executable, "-m", "vllm_videollava.commands.main", "convert", str(source), str(out), *flags]
    # With one thread, whose processor time other work on the machine hardly changes.
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} failed.")
    written = sum(path.stat().st_size for path in out.rglob("*")) / 1e6
    shutil.rmtree(out)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, written


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--folder", help="folder on the disk to use")
    return parser.parse_args()


if __name__ == "__main__":
    main()
