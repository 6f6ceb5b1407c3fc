"""`examples/ray_data_batch.py` answers every clip exactly once, whatever is killed meanwhile, run as a user runs it."""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from helpers.paths import ROOT, TESTS
from helpers.processes import process_tree, wait_until
from vllm_videollava.tiny.generator import write_examples

SCRIPT = ROOT / "examples" / "ray_data_batch.py"
SECONDS = 600
"""Within these, two engines start and answer, even if the machine is busy."""
LOADING = "Loading safetensors"
"""What an engine prints when it starts."""


def feature(name: str, how: str):
    return pytest.mark.feature("Processes and commands", name, how=how, slow=True)


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
    options = "--model tiny --dtype float32 --max-model-len 1024 --enforce-eager --replicas 2 --batch-size 4"
    return subprocess.Popen(
        [sys.executable, SCRIPT, clips, out, *options.split()],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "RAY_DEDUP_LOGS": "0"},
    )


def answered(out: Path) -> list[dict]:
    """Return the rows of all files; the last line of a file may still be incomplete."""
    lines = [line for path in out.glob("*.jsonl") for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


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


@feature(
    "Ray Data, with several replicas",
    "`examples/ray_data_batch.py`, 40 clips, two replicas; a replica, an engine and everything are killed",
)
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


class FakeLLM:
    """An engine that notes in a file what it is asked, and refuses a clip that ends in "bad"."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.asked = []

    def enqueue_chat(self, messages, params, use_tqdm):
        video, text = messages[0]["content"]
        content = urlopen(video["video_url"]["url"]).read().decode()
        if content == "bad":
            raise ValueError("This is bad.")
        self.asked.append(f"{text['text']} {content}")

    def wait_for_completion(self, use_tqdm):
        asked, self.asked = self.asked, []
        with self.notes.open("a") as file:
            file.writelines(f"{one}\n" for one in asked)
        return [SimpleNamespace(outputs=[SimpleNamespace(text=f" {one}! ")]) for one in asked]


@pytest.fixture(scope="module")
def cluster():
    paths = {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": paths})
    yield
    ray.shutdown()


@pytest.fixture
def ask_all(cluster, tmp_path, monkeypatch):
    """Return a function that runs the script with a fake engine, and returns what the engine was asked."""
    notes = tmp_path / "notes"
    script = runpy.run_path(str(SCRIPT))

    class FakeReplica(script["Replica"]):
        def start_engine(self):
            return FakeLLM(notes)

    def ask_all(*args: str | Path) -> list[str]:
        notes.write_text("")
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, args), "--batch-size", "2"])
        script["main"]()
        return sorted(notes.read_text().splitlines())

    monkeypatch.setitem(script["main"].__globals__, "Replica", FakeReplica)
    return ask_all


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    for name, content in (("a.mp4", "a"), ("50% #1?.MP4", "b"), ("more/c.webm", "c"), ("d.mp4", "bad"), ("e.txt", "e")):
        (folder / name).write_text(content)
    return folder


@feature(
    "Ray Data, its sources", "`examples/ray_data_batch.py`, folders and lists, with an engine that notes questions"
)
def test_a_folder_again_with_another_clip(ask_all, folder, tmp_path):
    out = tmp_path / "out.parquet"
    assert ask_all(folder, out, "--question", "Is it") == ["Is it a", "Is it b", "Is it c"]
    assert ask_all(folder, out) == []
    (folder / "f.mp4").write_text("f")
    assert ask_all(folder, out, "--question", "Is it") == ["Is it f"]
    rows = {row["clip"]: (row["answer"], row["error"]) for row in pq.read_table(out).to_pylist()}
    assert rows == {
        "a.mp4": ("Is it a!", None),
        "50% #1?.MP4": ("Is it b!", None),
        "more/c.webm": ("Is it c!", None),
        "d.mp4": (None, "This is bad."),
        "f.mp4": ("Is it f!", None),
    }


@feature(
    "Ray Data, its sources", "`examples/ray_data_batch.py`, folders and lists, with an engine that notes questions"
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_lists(ask_all, folder, tmp_path, suffix):
    rows = pa.table(
        {
            "clip": ["a.mp4", "a.mp4", str(folder / "more" / "c.webm"), "none.mp4"],
            "question": ["Was it", None, "Was it", "Was it"],
            "id": [3, 1, 4, 15],
            "label": ["x", "y", "z", ""],
        }
    )
    asked = ["Is it a", "Was it a", "Was it c"]
    clips, out = folder / f"clips{suffix}", tmp_path / "out"
    if suffix == ".parquet":
        pq.write_table(rows, clips)
    elif suffix == ".jsonl":
        clips.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    else:
        clips.write_text("\n".join(rows["clip"].to_pylist()[1:]) + "\n\n")
        rows, asked = rows.slice(1).select(["clip"]), ["Is it a", "Is it c"]
    assert ask_all(clips, out, "--question", "Is it") == asked
    assert sorted(row["answer"] for row in answered(out) if row["answer"]) == [f"{one}!" for one in asked]
    assert [row["error"] for row in answered(out) if row["error"]] == [f"{folder / 'none.mp4'} cannot be read."]
    assert sorted(row["clip"] for row in answered(out)) == sorted(rows["clip"].to_pylist())
    if suffix != ".txt":
        assert {row["id"]: row["label"] for row in answered(out)} == {3: "x", 1: "y", 4: "z", 15: ""}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([{"video": "a.mp4"}], "has no clips"),
        ([{"clip": "a.mp4", "answer": "yes"}], "may not have columns called answer"),
        ([{"clip": "a.mp4", "question": "What?"}, {"clip": "a.mp4", "question": "Why?"}], "an id of its own"),
    ],
)
def test_lists_that_cannot_be_asked(tmp_path, lines, sentence):
    clips = tmp_path / "clips.jsonl"
    clips.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match=sentence):
        runpy.run_path(str(SCRIPT))["list_rows"](str(clips), "What?")
