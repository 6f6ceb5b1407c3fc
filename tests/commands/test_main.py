"""The command `vllm-videollava`: what it hands to vLLM, and what it says of an installation."""

import importlib.metadata
import subprocess
import sys

import pytest

from vllm_videollava import tiny_checkpoint
from vllm_videollava.commands import main as cli
from vllm_videollava.commands import models

TINY, OFFICIAL = str(tiny_checkpoint()), "LanguageBind/Video-LLaVA-7B"
VERSION = importlib.metadata.version("vllm-videollava")


@pytest.fixture
def served(monkeypatch):
    """What vLLM is told to serve, instead of serving it."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    served = []
    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(served.append))
    return served


@pytest.fixture
def run(served, monkeypatch):
    """Run the command in this process, and return what it exits with."""
    # What the command changes for its process.
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setattr(importlib.metadata, "version", importlib.metadata.version)

    def run(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["vllm-videollava", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    return run


@pytest.fixture
def serve(run, served):
    """Run `serve` and return what vLLM is told to serve."""

    def serve(*flags: str):
        assert not run("serve", *flags)
        return served.pop()

    return serve


MODELS = {
    "": OFFICIAL,
    "--port 8123": OFFICIAL,
    "tiny": TINY,
    "tiny --port 8123": TINY,
    "--port 8123 tiny": TINY,
    "--enforce-eager tiny": TINY,
    "--enforce-eager --port 8123 tiny --dtype float32": TINY,
    "--port=8123 some/model": "some/model",
    '--limit-mm-per-prompt {"image":2} some/model': "some/model",
    "--limit-mm-per-prompt.image 2 some/model": "some/model",
    "-tp 1 some/model": "some/model",
    "--tokenizer tiny --port 8123 tiny": TINY,
    "tiny --tokenizer tiny": TINY,
    "--model some/model --port 8123": "some/model",
    "--port 8123 --model=some/model": "some/model",
    "--model tiny": TINY,
    "--enforce-eager --model=tiny": TINY,
    "--config {model}": "from/config",
    "--config {model} tiny": TINY,
    "tiny --config {model}": TINY,
    "--config {tiny}": TINY,
    "--config {port}": OFFICIAL,
}


CONFIGS = {"model": "model: from/config\nport: 8123\n", "tiny": "model: tiny\nport: 8123\n", "port": "port: 8123\n"}


@pytest.mark.parametrize(("flags", "model"), MODELS.items())
def test_the_model_may_stand_anywhere_or_nowhere(serve, tmp_path, flags, model):
    for name, content in CONFIGS.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(content)
        flags = flags.replace(f"{{{name}}}", str(path))
    args = serve(*flags.split())
    assert args.model_tag == model
    assert args.served_model_name == (["tiny"] if model == TINY else None)
    assert args.port == (8123 if "8123" in flags or "--config" in flags else 8000)
    assert args.enforce_eager == ("--enforce-eager" in flags)


@pytest.mark.parametrize("flags", ["--served-model-name mine --port 1 tiny", "tiny --served-model-name=mine"])
def test_tiny_may_have_another_name(serve, flags):
    args = serve(*flags.split())
    assert (args.model_tag, args.served_model_name) == (TINY, ["mine"])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_our_own(run, capsys, flag):
    assert run("serve", flag) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: vllm-videollava serve [model] [options]")
    for ours in (OFFICIAL, "tiny", "vllm-videollava serve --help=all"):
        assert ours in output
    for theirs in ("Qwen", "vllm serve [", "vllm serve -"):
        assert theirs not in output


def test_the_default_in_the_help_is_our_own():
    command = [sys.executable, "-m", "vllm_videollava.commands.main", "serve", "--help=model"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"(default: {OFFICIAL})" in " ".join(output.split())
    assert "Qwen" not in output


@pytest.mark.parametrize("flags", [["--no-such-flag"], ["tiny", "tiny"], ["--port", "x"], ["--dtype", "x", "tiny"]])
def test_wrong_flags_are_refused_under_our_name(run, capsys, flags):
    assert run("serve", *flags) == 2
    errors = capsys.readouterr().err
    assert "usage: vllm-videollava serve [model] [options]" in errors
    assert "vllm-videollava serve: error: " in errors


def test_version(run, capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"vllm-videollava {VERSION}\n"


@pytest.mark.parametrize(
    ("mistyped", "hint"),
    [
        ("serv", "did you mean serve?"),
        ("chekc", "did you mean check?"),
        ("vlm", "did you mean vllm?"),
        ("xyz", "the commands are serve, demo, check, convert, embed, vllm."),
    ],
)
def test_a_mistyped_command_is_answered_with_the_nearest(run, capsys, mistyped, hint):
    assert run(mistyped, "tiny") == 2
    assert capsys.readouterr().err.endswith(f"error: there is no command {mistyped!r}; {hint}\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_begins_with_a_verb_and_shows_an_example_that_works(run, capsys, name, monkeypatch):
    command = cli.COMMANDS[name]
    assert command.HELP.split()[0] in {"serve", "draw", "show", "write", "run"}
    run("--help")
    assert command.HELP.split(",")[0] in " ".join(capsys.readouterr().out.split())
    ran = []
    monkeypatch.setattr(command, "run", ran.append)
    program, *arguments = command.EXAMPLE.split()
    assert (program, arguments[0]) == ("vllm-videollava", name)
    assert run(*arguments) is None
    assert ran


@pytest.mark.parametrize("flags", [["--foo"], ["tiny", "more"]])
def test_flags_that_a_command_does_not_take_are_named(run, capsys, flags):
    assert run("check", *flags) == 2
    assert capsys.readouterr().err.endswith(f"error: unrecognized arguments for check: {flags[-1]}\n")


def test_both_spellings_of_colour(run, monkeypatch):
    ran = []
    monkeypatch.setattr(cli.COMMANDS["demo"], "run", ran.append)
    run("demo", "--color", "red")
    run("demo", "--colour", "red")
    assert [args.colour for args in ran] == ["red", "red"]


@pytest.mark.parametrize("command", ["bench serve", "run-batch", "bench throughput"])
def test_commands_of_vllm_work_with_its_cpu_build(command):
    door = [sys.executable, "-m", "vllm_videollava.commands.main", "vllm"]
    output = subprocess.run([*door, *command.split(), "--help"], capture_output=True, text=True, check=True).stdout
    assert f"usage: vllm {command}" in output


def test_names_of_models():
    assert models.resolve("tiny") == TINY
    assert models.resolve("some/model") == "some/model"


@pytest.mark.parametrize("value", ["", "other", "other,another", "video-llava"])
def test_plugins_without_this_one_are_named(run, monkeypatch, capsys, value):
    monkeypatch.setenv("VLLM_PLUGINS", value)
    sentence = f"VLLM_PLUGINS is {value!r}; unset it, or add video_llava to it."
    assert run("serve", "tiny") == sentence
    assert run("check") == 1
    assert f"plugin   NOT LOADED: {sentence}" in capsys.readouterr().out


def test_plugins_with_this_one_are_fine(serve, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other,video_llava")
    assert serve("tiny").model_tag == TINY


def test_a_plugin_that_is_not_installed_is_named(run, monkeypatch, capsys):
    from vllm import ModelRegistry

    monkeypatch.setattr(type(ModelRegistry), "get_supported_archs", lambda self: set())
    sentence = "vLLM does not find the plugin; install this package into vLLM's Python environment."
    assert run("serve", "tiny") == sentence
    assert run("check") == 1
    assert f"plugin   NOT LOADED: {sentence}" in capsys.readouterr().out


def test_check_tells_what_is_installed(run, capsys, checkpoint, tmp_path):
    assert run("check", str(checkpoint)) == 0
    report = capsys.readouterr().out
    for line in (
        "plugin   found",
        f"package  {VERSION}",
        "decoder  PyAV",
        "original format",
        "136 tokens, 8 frames",
        "temporal attention: yes",
    ):
        assert line in report
    assert run("check", "tiny") == 0
    assert "video: 400 tokens, 8 frames at 98 pixels" in capsys.readouterr().out
    assert run("check", str(tmp_path)) == 1
    assert f"model    {tmp_path}:" in capsys.readouterr().out
