"""The examples do what they say, run as a user runs them."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.clips import encode_clip, smooth_frames
from helpers.paths import ROOT

NUM_COPIES = 60
ENGINE = ["--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]


def start(script: str, *args: str | Path) -> subprocess.Popen:
    """Start an example in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, ROOT / "examples" / script, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        start_new_session=True,
    )


def run(script: str, *args: str | Path) -> str:
    """Run an example to its end and return what it prints."""
    process = start(script, *args)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def test_offline_video(checkpoint):
    output = run("offline_video.py", "--model", checkpoint, *ENGINE)
    _, *sections = re.split(r"^(LLM\.\w+ with [\w ]+)\n-+\n", output, flags=re.MULTILINE)
    answers = {heading: answer.strip() for heading, answer in zip(sections[::2], sections[1::2], strict=True)}
    chat, generate = (
        [answers.pop(f"LLM.{way} with {media}") for media in ("a clip", "an image", "both")]
        for way in ("chat", "generate")
    )
    assert not answers
    assert all(chat)
    assert len(set(chat)) == 3
    assert chat == generate


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    (folder / "x.mp4").write_text("This is no video.")
    for num_frames, name in ((8, "a.mp4"), (24, "50% #1?.MP4"), (40, "more/z.mp4")):
        (folder / name).write_bytes(encode_clip(smooth_frames(num_frames, 240, 320)))
    # So many that there is time to interrupt.
    for index in range(NUM_COPIES):
        shutil.copy(folder / "more/z.mp4", folder / f"more/copy {index:02}.mp4")
    return folder


def test_offline_batch(checkpoint, clips, tmp_path):
    out = tmp_path / "out.jsonl"
    command = ["offline_batch.py", clips, out, "--model", checkpoint, "--max-tokens", "64", *ENGINE]

    interrupted = start(*command)
    wait_for_line(out, interrupted)
    os.killpg(interrupted.pid, signal.SIGINT)
    _, errors = interrupted.communicate(timeout=100)
    first = out.read_bytes()
    assert interrupted.returncode == 1
    num_clips = NUM_COPIES + 4
    assert f"Interrupted: {len(first.splitlines())} of {num_clips} clips are done" in errors
    assert "Traceback" not in errors

    out.write_bytes(first[:-10])
    assert f"All {num_clips} clips are done" in run(*command)
    assert out.read_bytes().startswith(first[: first.rfind(b"\n", 0, -1) + 1])
    lines = {line.pop("clip"): line for line in map(json.loads, out.read_text().splitlines())}
    sentence = "Message 1, part 1: The video is plain text, not a video file; send the video file itself."
    assert lines.pop("x.mp4") == {"error": sentence}
    assert len(lines) == num_clips - 1
    assert all(line["answer"] for line in lines.values())

    complete = out.read_bytes()
    start_time = time.monotonic()
    assert f"All {num_clips} clips are done" in run(*command)
    assert time.monotonic() - start_time < 5, "an engine was started for nothing"
    assert out.read_bytes() == complete


def wait_for_line(out: Path, process: subprocess.Popen) -> None:
    while not (out.exists() and out.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize("bad", ["", "a", "d", "bc", "abcd"])
def test_offline_batch_asks_each_clip_once(bad):
    asked = []

    class FakeLLM:
        def enqueue_chat(self, messages, params, use_tqdm):
            name = messages[0]["content"][0]["video_url"]["url"][-1]
            asked.append(name)
            if name in bad:
                raise ValueError(f"no {name}")

        def wait_for_completion(self, use_tqdm):
            texts = [f" about {name} " for name in asked if name not in bad]
            return [SimpleNamespace(outputs=[SimpleNamespace(text=text)]) for text in texts]

    ask = runpy.run_path(str(ROOT / "examples" / "offline_batch.py"))["ask"]
    results = {path.name: result for path, result in ask(FakeLLM(), [Path(name) for name in "abcd"], "What?", None)}
    assert asked == list("abcd")
    assert results == {name: {"error": f"no {name}"} if name in bad else {"answer": f"about {name}"} for name in "abcd"}


def test_offline_batch_keeps_files_of_others(clips, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("to do\nmuch")
    process = start("offline_batch.py", clips, notes)
    assert "choose another file" in process.communicate(timeout=100)[1]
    assert notes.read_text() == "to do\nmuch"


@pytest.mark.parametrize("with_files", [False, True])
def test_openai_client(server_url, tmp_path, with_files):
    video, image = tmp_path / "clip.mp4", tmp_path / "picture.jpg"
    video.write_bytes(encode_clip(smooth_frames(24, 240, 320)))
    Image.fromarray(smooth_frames(1, 240, 320)[0]).save(image)
    files = ["--video", video, "--image", image] if with_files else []
    assert run("openai_client.py", "--base-url", f"{server_url}/v1", *files).strip()
