"""Every import within the package is one that the table of CONTRIBUTING.md allows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.paths import ROOT

PACKAGE = ROOT / "vllm_videollava"


class Rule(NamedTuple):
    allowed: set[str]
    forbidden: set[str]


def read_rules() -> dict[str, Rule]:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|([^|]*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    rules = {
        name: Rule(set(re.findall(r"\w+", allowed)), set(re.findall(r"\w+", forbidden)))
        for name, allowed, forbidden in rows
    }
    everything = set(rules) | {"__init__"}
    return {
        name: Rule(everything if rule.allowed == {"everything"} else rule.allowed, rule.forbidden)
        for name, rule in rules.items()
    }


RULES = read_rules()


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every file of the package, with the part of the package that it belongs to."""
    # `rglob` does not follow the link `kernels`.
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").glob("*.py")]):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(source: str) -> Iterator[str]:
    """Yield every module that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            # The package alone is its `__init__`.
            yield from (
                f"{alias.name}.__init__" if alias.name == "vllm_videollava" else alias.name for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module != "vllm_videollava":
                yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(part: str, source: str) -> set[str]:
    """Return what a source of a part of the package imports and must not."""
    rule = RULES[part]
    allowed = {part, *rule.allowed}
    return {
        name
        for name in imports(source)
        if name.partition(".")[0] in rule.forbidden
        or (name.startswith("vllm_videollava.") and _part(name) not in allowed)
    }


def _part(name: str) -> str:
    """Return which part of the package has a name; what is in none is in the package's own `__init__`."""
    part = name.split(".")[1]
    return part if part in RULES else "__init__"


@pytest.mark.parametrize(("part", "path"), [(part, path) for part, path in modules() if part != "__init__"])
def test_imports_are_allowed(part, path):
    assert offences(part, path.read_text()) == set()


def test_the_table_has_all_parts_of_the_package():
    assert {part for part, _ in modules()} - {"__init__"} == set(RULES)


def test_the_package_itself_imports_its_plugin_only():
    names = set(imports((PACKAGE / "__init__.py").read_text()))
    assert {name for name in names if name.startswith("vllm")} == {
        "vllm_videollava.plugin",
        "vllm_videollava.plugin.register",
    }


def test_there_is_no_circle():
    order: list[str] = []
    left = {name: rule.allowed - {name} for name, rule in RULES.items() if name != "commands"}
    while left:
        ready = [name for name, allowed in left.items() if allowed <= set(order)]
        assert ready, f"each of these needs another of them: {left}"
        order += ready
        left = {name: allowed for name, allowed in left.items() if name not in ready}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("decoding", "import vllm"),
        ("decoding", "def f():\n    from torch import nn"),
        ("decoding", "from vllm_videollava.media.io import MediaFile"),
        ("model", "from vllm_videollava.commands import main"),
        ("model", "from vllm_videollava import commands"),
        ("text", "import vllm_videollava.media.io"),
        ("kernels", "from vllm_videollava.model import tower"),
        ("decoding", "from vllm_videollava import tiny_checkpoint"),
        ("checkpoints", "import vllm_videollava"),
    ],
)
def test_what_is_not_allowed_is_noticed(part, source):
    assert offences(part, source)


def test_a_decoding_process_loads_no_engine():
    code = (
        "import sys\n"
        "import vllm_videollava.decoding.worker, vllm_videollava.decoding.video, vllm_videollava.decoding.image\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('vllm_videollava.')))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    packages, ours = (line.split() for line in output.splitlines())
    assert not {"vllm", "torch", "transformers", "triton"} & set(packages)
    assert {name.split(".")[1] for name in ours} == {"decoding"}
