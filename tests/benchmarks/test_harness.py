"""Benchmarks: the harness takes turns, rows say where they come from, and the README says what the rows say."""

import json
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import harness
from helpers.paths import ROOT
from helpers.results import RESULTS

README = (ROOT / "benchmarks" / "README.md").read_text()


def test_ways_take_turns():
    calls = []
    samples = harness.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ababab"
    assert {way: len(values) for way, values in samples.items()} == {"a": 3, "b": 3}


def test_rows_have_percentiles_and_say_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    path = harness.write_rows("x", [harness.row("case", "way", "time", "s", range(11))])
    (row,) = [json.loads(line) for line in path.open()]
    assert (row["p20"], row["p50"], row["p80"], row["n"]) == (2, 5, 8, 11)
    assert row["versions"]["torch"]
    assert re.fullmatch(r"[0-9a-f]+\+?", row["commit"])
    assert "cores" in row["device"]


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_of_one_run(name):
    keys = ("device", "date", "commit", "python", "versions")
    assert len({json.dumps([row[key] for key in keys]) for row in RESULTS[name]}) == 1
    assert not RESULTS[name][0]["commit"].endswith("+"), "measured with files that are in no commit"


@pytest.mark.parametrize(
    "name",
    [
        "media",
        "soak",
        "kernel_speed",
        "throughput",
        "serving",
        "encoder_speed",
        "tiny_accuracy",
        "where_time_goes",
        "convert",
    ],
)
def test_benchmark_starts(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    assert "results" in subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def kernel_time(case: str, way: str) -> float:
    (value,) = [
        row["p50"] for row in RESULTS["kernel_speed"] if (row["case"], row["way"], row["metric"]) == (case, way, "time")
    ]
    return value


def test_the_readmes_multiples_of_the_product():
    cases = [f"{{}}, {frames} frames" for frames in (8, 24, 56, 256)]
    multiples = [
        kernel_time(case.format("frame_patch_embed"), "this package")
        / kernel_time(case.format("cuBLAS product"), "this package")
        for case in cases
    ]
    text = README.partition("is missed: it takes")[2].partition("times as long")[0]
    assert re.findall(r"[\d.]+", text) == [f"{multiple:.1f}" for multiple in multiples]


def test_what_fused_norms_save():
    layers = {(row["case"], row["way"]): row["p50"] for row in RESULTS["kernel_speed"] if row["metric"] == "time"}
    for frames in (8, 24, 56):
        case = f"encoder layer, {frames} frames"
        assert round(100 - 100 * layers[case, "add and norm fused"] / layers[case, "this package"]) == 6
    assert "6 % faster at 8, 24 and 56 frames" in " ".join(README.split())


def test_what_the_readme_says_of_the_whole_model():
    rows = [*RESULTS["throughput"], *RESULTS["throughput_of_transformers"]]
    default = {row["case"]: row["p50"] for row in rows if row["way"] == "this package, default"}
    sentence = r"first token after (\d+) ms, and the next .+ after (\d+) ms"
    first, again = re.search(sentence, " ".join(README.split())).groups()
    assert (int(first), int(again)) == (
        round(1000 * default["lone clip"]),
        round(1000 * default["lone clip again"]),
    )
    prefill = max(row["p50"] for row in rows if row["case"] == "many clips, 1 tokens")
    assert f"transformers reads {prefill:.0f} a second with one-token answers" in " ".join(README.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["kernel_speed", "encoder_speed", "throughput", "serving", "where_time_goes"])
def test_what_needs_a_gpu_says_so(name):
    script = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert script.returncode == 1
    # Libraries may have warned first.
    assert script.stderr.splitlines()[-1].startswith("There is no GPU")
