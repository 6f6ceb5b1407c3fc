"""The command `vllm-videollava convert`: its flags, what it prints, and what it exits with."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from helpers.sources import write_adapter
from vllm_videollava import tiny_checkpoint
from vllm_videollava.commands import main as cli


@pytest.fixture
def run(monkeypatch):
    """Run `convert` in this process, and return what it exits with."""

    def run(*arguments: object) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["vllm-videollava", "convert", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda number, handler: None)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    return run


def test_the_tiny_checkpoint_is_copied(tmp_path, capsys):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vllm_videollava.commands.main", "convert", "tiny", str(out)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.endswith(f"Written to {out}\n")
    # The bar of progress: percent, bytes, time left.
    assert "Converting: 100%" in process.stderr
    assert "<00:00" in process.stderr
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tiny_checkpoint()))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_flags(run, tmp_path, checkpoint, capsys):
    source, out = tmp_path / "lora", tmp_path / "out"
    write_adapter(source, checkpoint, names_base=False)
    flags = ["--base", checkpoint, "--dtype", "bfloat16", "--bits", 4, "--shard-size", "1MB", "--to", "transformers"]
    assert run(source, out, *flags) is None
    assert capsys.readouterr().out == (
        f"{out} lacks the video tower's attention over time, which transformers' model does not have.\n"
        f"Written to {out}\n"
    )
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "video_llava"
    assert config["torch_dtype"] == "bfloat16"
    assert "dtype" not in config["text_config"]
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert len(list(out.glob("*.safetensors"))) > 1


def test_an_error_is_one_sentence(run, tmp_path):
    assert run("tiny", tmp_path) == f"{tmp_path} exists already; choose another name or remove it."


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--bits", "3"], "invalid choice: 3"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--to", "original"], "invalid choice: 'original'"),
        (["--shard-size", "4"], "'4' is not a size such as 500MB or 4GB"),
        (["--shard-size", "4gb"], "'4gb' is not a size such as 500MB or 4GB"),
    ],
)
def test_wrong_flags_are_refused(run, tmp_path, capsys, flags, error):
    assert run("tiny", tmp_path / "out", *flags) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_is_named(run, tmp_path, monkeypatch):
    def deny(*arguments, **options):
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("vllm_videollava.conversion.convert.convert", deny)
    assert run("tiny", tmp_path / "out") == "/some/file cannot be read or written: Permission denied."


def test_an_interrupt_is_no_traceback(run, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vllm_videollava.conversion.convert.convert", interrupt)
    assert run("tiny", tmp_path / "out") == 130
    assert capsys.readouterr().err == "Interrupted; what was written has been removed.\n"
