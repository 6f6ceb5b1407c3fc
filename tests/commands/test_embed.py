"""The command `vllm-videollava embed`: what it writes, what it prints, and what it exits with."""

import subprocess
import sys

import torch

from helpers.asking import clip, picture


def embed(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vllm_videollava.commands.main", "embed", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_good_files_are_encoded_and_bad_ones_named(tmp_path):
    good, bad, image, out = (tmp_path / name for name in ("clip.mp4", "text.mp4", "still.webp", "out"))
    good.write_bytes(clip(1))
    bad.write_text("no video")
    picture(2).save(image)
    process = embed(good, bad, image, "--model", "tiny", "--output", out, "--dtype", "float32")
    assert process.returncode == 1
    assert process.stdout.endswith(f"Written to {out}: 2 of 3 files.\n")
    assert f"{bad}: The video is plain text, not a video file" in process.stderr
    assert {path.name: tuple(torch.load(path).shape) for path in out.iterdir()} == {
        "clip.mp4.pt": (400, 128),
        "still.webp.pt": (49, 128),
    }


def test_what_is_wrong_is_said_before_anything_is_loaded(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clip.mp4").write_bytes(clip(1))
    process = embed(tmp_path / "one" / "clip.mp4", tmp_path / "two" / "clip.mp4", "--output", tmp_path / "out")
    assert process.returncode == 1
    assert process.stderr.startswith("clip.mp4 is the name of two files")
    process = embed(tmp_path / "none.mp4", "--output", tmp_path / "out")
    assert process.stderr == f"{tmp_path / 'none.mp4'} is not a file.\n"
    assert not (tmp_path / "out").exists()
