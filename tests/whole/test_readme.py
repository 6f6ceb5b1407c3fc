"""Every path and command in the README exists, and its tree shows every folder."""

import re
import shlex
import subprocess
import sys

import pytest

from helpers.paths import ROOT

README = (ROOT / "README.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", README) + re.findall(r"^    (\S.*)$", README, re.MULTILINE)
PATHS = sorted({path for code in CODE for path in re.findall(r"[\w./-]+/[\w./-]*\.\w+", code) if "://" not in code})
TARGETS = sorted({code.split()[1] for code in CODE if code.startswith("make ")})
COMMANDS = sorted({code.split()[1] for code in CODE if re.match(r"vllm-videollava \w+", code)})
SCRIPTS = sorted({code.partition("#")[0].strip() for code in CODE if re.match(r"python (examples/|-m )", code)})


@pytest.mark.parametrize("path", PATHS)
def test_path_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_exists(target):
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command):
    help_text = subprocess.run(
        [sys.executable, "-m", "vllm_videollava.commands.main", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert re.search(rf"^    {command} ", help_text, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_takes_these_arguments(script):
    arguments = shlex.split(script)[1:]
    script = arguments[: 2 if arguments[0] == "-m" else 1]
    help_text = subprocess.run(
        [sys.executable, *script, "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert all(argument in help_text for argument in arguments if argument.startswith("--"))


def test_there_is_something_to_check():
    assert len(PATHS) >= 3
    assert TARGETS == ["bench-tiny", "demo", "fuzz", "lint", "setup", "test", "train-tiny"]
    assert COMMANDS == ["check", "convert", "demo", "embed", "serve", "vllm"]
    assert len(SCRIPTS) == 8


def read_tree() -> set[str]:
    """Return the paths that the README's tree shows, folders with a slash at the end."""
    paths, folder = set(), ""
    section = README.partition("## How it works")[2]
    lines = re.findall(r"^    ( *)([\w./]+)  +\S.*$|^    ([\w]+/)$", section, re.MULTILINE)
    for indent, name, parent in lines:
        if parent or not indent:
            folder = parent
        paths.add(parent or (folder if indent else "") + name)
    return paths


def test_the_tree_shows_what_there_is():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    top = {path.partition("/")[0] + "/" for path in tracked if "/" in path and not path.startswith(".")}
    package = [path.removeprefix("vllm_videollava/") for path in tracked if path.startswith("vllm_videollava/")]
    inside = {f"vllm_videollava/{path.partition('/')[0]}{'/' if '/' in path else ''}" for path in package}
    # A link is tracked as a file.
    inside = {f"{path}/" if path == "vllm_videollava/kernels" else path for path in inside}
    assert read_tree() == top | inside - {"vllm_videollava/py.typed"}


def test_ci_runs_the_readmes_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
