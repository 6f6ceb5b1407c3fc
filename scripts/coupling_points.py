"""List the names of vLLM that the package depends on, or what another vLLM changes about them.

    python scripts/coupling_points.py
    python scripts/coupling_points.py --against build/versions/0.31/.venv/bin/python

The names come from the package's own source: what it imports and calls, and
what its classes inherit and override. Only Python's standard library is used, so that the
file also runs in the other environment, whatever is broken there.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "vllm_videollava"

# The package reaches these through values, not by an import.
OTHER_NAMES = (
    "vllm.config.ParallelConfig._api_process_count",
    "vllm.config.VllmConfig.use_v2_model_runner",
    "vllm.entrypoints.llm.LLM._render_and_add_requests",
    "vllm.lora.ops.torch_ops.lora_ops.bgmv_expand",
    "vllm.lora.ops.torch_ops.lora_ops.bgmv_expand_slice",
    "vllm.lora.punica_wrapper.punica_cpu.bgmv_expand",
    "vllm.lora.punica_wrapper.punica_cpu.bgmv_expand_slice",
)

FIELD = object()
"""Stands for a field of a class, which only its objects have."""


class Points(NamedTuple):
    """Names of vLLM, such as `vllm.config.VllmConfig`.

    Attributes:
        imported: what the package imports, and the attributes of it that it uses.
        inherited: what its classes may have from vLLM's, if vLLM's class has it.
    """

    imported: set[str]
    inherited: set[str]


class OwnClass(NamedTuple):
    bases: list[str]
    names: set[str]
    """What the class defines, or uses of itself."""


def find_points() -> Points:
    """Read the package's source."""
    imported, classes = set(OTHER_NAMES), {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        known = find_imports(tree)
        imported |= {name for name in used_names(tree, known) if name.startswith("vllm.")}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                known.setdefault(node.name, f"{module}.{node.name}")
                bases = [base for base in (dotted(without_parameters(one), known) for one in node.bases) if base]
                classes[f"{module}.{node.name}"] = OwnClass(bases, names_of_class(node))
    return Points(imported, set(inherited_names(classes)))


def find_imports(tree: ast.Module) -> dict[str, str]:
    """Return what each imported name stands for."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return known


def used_names(tree: ast.Module, known: dict[str, str]) -> Iterator[str]:
    """Yield every imported name, and its attributes that are used."""
    yield from known.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node, known)):
            yield name


def dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (value := dotted(node.value, known)):
        return f"{value}.{node.attr}"
    return None


def without_parameters(base: ast.expr) -> ast.expr:
    return base.value if isinstance(base, ast.Subscript) else base


def names_of_class(node: ast.ClassDef) -> set[str]:
    functions = {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    of_self = {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute)
        and ((isinstance(one.value, ast.Name) and one.value.id in ("self", "cls")) or is_super(one.value))
    }
    return functions | of_self


def is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def inherited_names(classes: dict[str, OwnClass]) -> Iterator[str]:
    """Yield what each class defines or uses, as an attribute of each of vLLM's classes below it."""
    for name in classes:
        ancestors = [*all_ancestors(name, classes)]
        names = set().union(*(classes[one].names for one in ancestors if one in classes))
        yield from (f"{one}.{attr}" for one in ancestors if one.startswith("vllm.") for attr in names)


def all_ancestors(name: str, classes: dict[str, OwnClass]) -> Iterator[str]:
    yield name
    for base in classes[name].bases if name in classes else ():
        yield from all_ancestors(base, classes)


def describe(points: Points) -> dict[str, list[str]]:
    """Return each point that the installed vLLM has, with its parameters if it can be called, else with its type.

    The name `vllm` has the version.
    """
    described = {"vllm": [importlib.import_module("vllm").__version__]}
    for name in sorted(points.imported | points.inherited):
        # Whatever is wrong with another vLLM, the rest is to be described.
        with contextlib.suppress(Exception):
            described[name] = signature(find(name))
    return described


def find(name: str) -> object:
    """Return the object of a dotted name.

    Raises:
        ImportError, AttributeError: there is none.
    """
    first, *rest = name.split(".")
    found = importlib.import_module(first)
    for part in rest:
        if inspect.ismodule(found) and not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        is_field = isinstance(found, type) and any(part in inspect.get_annotations(one) for one in found.__mro__)
        found = getattr(found, part, FIELD) if is_field else getattr(found, part)
    return found


def signature(found: object) -> list[str]:
    if not callable(found):
        return ["a field" if found is FIELD else f"of type {type(found).__name__}"]
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return ["of unknown parameters"]
    return [
        str(one.replace(annotation=one.empty, default=one.empty)) + ("" if one.default is one.empty else "=")
        for one in parameters
    ]


def find_changes(old: dict[str, list[str]], new: dict[str, list[str]]) -> Iterator[str]:
    """Yield a line for each point that differs."""
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"gone     {name}"
        elif name not in old:
            yield f"new      {name}"
        elif old[name] != new[name]:
            added = [f"+{one}" for one in new[name] if one not in old[name]]
            lost = [f"-{one}" for one in old[name] if one not in new[name]]
            yield f"changed  {name}: {' '.join(lost + added) or 'another order'}"


def ask(python: str) -> dict[str, list[str]]:
    """Return what `describe` tells of the vLLM that a Python has."""
    # Without it, the CUDA build needs a GPU.
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [python, __file__, "--json"]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="PYTHON", nargs="+", help="Pythons of environments with other vLLMs")
    parser.add_argument("--json", action="store_true", help="print the list in one line, for --against")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(describe(find_points())))
    elif args.against:
        here = ask(sys.executable)
        for python in args.against:
            print(python, *find_changes(here, ask(python)), sep="\n  ")
    else:
        for name, parameters in ask(sys.executable).items():
            print(f"{name}({', '.join(parameters)})")


if __name__ == "__main__":
    main()
