"""Turns this model's names of tensors into those of a format; `tensors.names` does the opposite."""

from collections.abc import Mapping


def replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """Replace the first of some prefixes that a name has."""
    for prefix, replacement in prefixes.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name
