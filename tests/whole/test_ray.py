"""`examples/ray_data_batch.py` answers every clip exactly once, whatever is killed meanwhile, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.processes import process_tree, wait_until
from vllm_videollava.tiny.generator import write_examples

pytest.importorskip("ray")
pytest.importorskip("pyarrow")

SECONDS = 600
"""Within these, two engines start and answer, even if the machine is busy."""

LOADING = "Loading safetensors"
"""What an engine prints when it starts."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory, request) -> Path:
    """A list of clips, each with a question of its own and the right answer; two of the clips are of no use."""
    folder = tmp_path_factory.mktemp("clips")
    asked = {}
    for (clip,), question in write_examples(folder, request.config.getoption("--ray-clips"), 0, seed=3):
        if question.kind in ("colour", "shape", "motion"):
            asked.setdefault(clip.name, {"question": question.text, "right": question.answer})
    (folder / "text.mp4").write_text("This is no video.")
    for name in ("text.mp4", "missing.mp4"):
        asked[name] = {"question": "What happens?", "right": None}
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"clip": clip, **row}) + "\n" for clip, row in asked.items()))
    return rows


def start(clips: Path, out: Path, log: Path) -> subprocess.Popen:
    ray = ["--replicas", "2", "--replica-cpus", "0.5", "--batch-size", "4"]
    engine = [
        "--model",
        "tiny",
        "--dtype",
        "float32",
        "--max-model-len",
        "2304",
        "--max-tokens",
        "32",
        "--enforce-eager",
    ]
    return subprocess.Popen(
        [sys.executable, ROOT / "examples" / "ray_data_batch.py", clips, out, *ray, *engine],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "RAY_DEDUP_LOGS": "0"},
    )


def answered(out: Path) -> list[dict]:
    return [json.loads(line) for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]


def wait_for_more(out: Path, process: subprocess.Popen, log: Path) -> None:
    """Wait for more answers, and check that there will be even more."""
    before = len(answered(out))
    wait_until(lambda: len(answered(out)) > before or process.poll() is not None, SECONDS)
    assert process.poll() is None, log.read_text()


def find_process(name: str, root: int) -> int | None:
    for pid in process_tree(root):
        with suppress(OSError):
            if name in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
    return None


def kill_all(root: int) -> None:
    for pid in process_tree(root):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_every_clip_is_answered_once(clips, tmp_path):
    out, log = tmp_path / "answers", tmp_path / "log"
    num_rows = len(clips.read_text().splitlines())

    # A replica is killed, then an engine below its replica, then everything.
    first = start(clips, out, log)
    try:
        for victim in ("ray::MapWorker(MapBatches(Replica))", "VLLM::EngineCore"):
            wait_for_more(out, first, log)
            os.kill(find_process(victim, first.pid), signal.SIGKILL)
        wait_for_more(out, first, log)
    finally:
        kill_all(first.pid)
        first.wait()
    before = {path: path.read_text() for path in out.glob("*.jsonl")}
    assert len(answered(out)) < num_rows

    assert LOADING in log.read_text()

    # The same command does the rest; what was being written when all was killed may be written anew.
    assert run_to_end(clips, out, log) == f"All {num_rows} rows are in {out}."
    kept = [path for path, text in before.items() if path.exists() and path.read_text() == text]
    assert len(kept) >= len(before) - 2
    rows = {row["clip"]: row for row in answered(out)}
    assert Counter(row["clip"] for row in answered(out)) == Counter(rows.keys())
    assert len(rows) == num_rows
    errors = {name: rows.pop(name)["error"] for name in ("text.mp4", "missing.mp4")}
    assert errors == {
        "text.mp4": "Message 1, part 1: The video is plain text, not a video file; send the video file itself.",
        "missing.mp4": f"{clips.parent / 'missing.mp4'} cannot be read.",
    }
    assert [row for row in rows.values() if row["answer"] != row["right"]] == []

    # There is nothing left to ask.
    files = sorted(out.iterdir())
    run_to_end(clips, out, log)
    assert sorted(out.iterdir()) == files
    assert LOADING not in log.read_text()


def run_to_end(clips: Path, out: Path, log: Path) -> str:
    """Run the script to its end and return the last line that it printed itself."""
    process = start(clips, out, log)
    try:
        assert process.wait(SECONDS) == 0, log.read_text()
    finally:
        kill_all(process.pid)
    return next(line for line in reversed(log.read_text().splitlines()) if line.startswith("All "))
