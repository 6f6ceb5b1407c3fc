"""Which versions of vLLM are supported is said once, and the names that the package needs of vLLM are there."""

import subprocess
import sys

import pytest

from helpers.paths import ROOT
from scripts.coupling_points import ask, find_changes, find_points
from scripts.versions import read_supported

SUPPORTED = read_supported()


def test_readme_and_changelog_name_the_versions_of_pyproject():
    first, *_, last = SUPPORTED.all()
    for name in ("README.md", "CHANGELOG.md"):
        assert f"vLLM {first} to {last}" in (ROOT / name).read_text()


@pytest.mark.parametrize(("newer", "warnings"), [(True, 1), (False, 0)])
def test_a_vllm_newer_than_the_bound_gets_one_warning(newer, warnings):
    version = (SUPPORTED.bound.major, SUPPORTED.bound.minor - (not newer), 0)
    code = f"import vllm; vllm.__version_tuple__ = {version}; import vllm_videollava as package\n"
    code += "package.register(); package.register()"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    logged = output.stdout + output.stderr
    assert logged.count("is newer than what this version of vllm-videollava was tested with") == warnings
    if newer:
        assert f"install a vLLM below {SUPPORTED.bound}" in logged


def test_what_the_package_imports_from_vllm_exists():
    """Names that its classes override may be missing: vLLM calls them only where it has them."""
    points = find_points()
    assert len(points.imported) > 100
    assert "vllm.renderers.hf.HfRenderer._truncate_expanded_prompt" in points.inherited
    assert points.imported - ask(sys.executable).keys() == set()


def test_changes_of_vllm_are_told_apart():
    old = {"vllm": ["0.32.0"], "a": ["x", "y="], "b": [], "c": ["x", "y"], "d": ["x"]}
    new = {"vllm": ["0.33.0"], "a": ["x", "z="], "c": ["y", "x"], "d": ["x"], "e": []}
    assert [*find_changes(old, new)] == [
        "changed  a: -y= +z=",
        "gone     b",
        "changed  c: another order",
        "new      e",
        "changed  vllm: -0.32.0 +0.33.0",
    ]
