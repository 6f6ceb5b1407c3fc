"""The demo, as an installed user runs it: right answers from a server on the tiny checkpoint, and frames to look at."""

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from helpers.paths import ROOT
from vllm_videollava.commands.demo import choose_questions, show_frames
from vllm_videollava.tiny.world import random_clip_scene

README = (ROOT / "README.md").read_text()


def test_the_readmes_demo(tmp_path):
    arguments = re.search(r"^    vllm-videollava (demo .+)$", README, re.MULTILINE)[1]
    output = subprocess.run(
        [sys.executable, "-m", "vllm_videollava.commands.main", *arguments.split()],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ).stdout
    answers = re.findall(r"^Answer    (.+)\nExpected  (.+)\nTimes     first word after [\d.]+ s", output, re.MULTILINE)
    assert len(answers) == 4
    assert all(answer == expected for answer, expected in answers)
    assert f"Again     vllm-videollava {arguments}\n" in output
    assert "4 of 4 answers are as expected." in output
    shown = re.findall(r"^    Question  (.+)\n    Answer    (.+)$", README, re.MULTILINE)
    assert len(shown) == 3
    for question, answer in shown:
        assert f"Question  {question}\nAnswer    {answer}\n" in output

    clip, frames = (Path(re.search(rf"^{name} +(.+?\.\w+)", output, re.MULTILINE)[1]) for name in ("Clip", "Frames"))
    with av.open(str(clip)) as video:
        num_frames = sum(1 for _ in video.decode(video=0))
    assert f"{num_frames} frames" in output
    assert np.array_equal(Image.open(frames), Image.open(ROOT / "examples" / "frames.png"))


def test_a_negative_seed_is_refused():
    command = [sys.executable, "-m", "vllm_videollava.commands.main", "demo", "--seed", "-1"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.endswith("error: argument --seed: '-1' is not a whole number of at least 0\n")


def test_every_clip_has_four_questions_of_different_kinds():
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert len({question.kind for question in choose_questions(random_clip_scene(rng), rng)}) == 4


def test_a_terminal_shows_the_eight_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    scene = random_clip_scene(np.random.default_rng(0), 1, colour="red", behaviour="stays")
    show_frames(scene, tmp_path / "frames.png")
    lines = [line for line in capsys.readouterr().out.splitlines() if "▀" in line]
    assert {line.count("\x1b[0m") for line in lines} == {4}
    drawn = [tuple(map(int, rgb)) for rgb in re.findall(r"[34]8;2;(\d+);(\d+);(\d+)m", "".join(lines))]
    reds = [red - max(green, blue) > 60 for red, green, blue in drawn]
    # In each frame at least a pixel, but a few of all.
    assert 8 <= sum(reds) < len(reds) / 4
