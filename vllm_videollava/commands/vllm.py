"""`vllm-videollava vllm`: run any subcommand of vLLM, even in its CPU build, whose own `vllm` command crashes."""

import argparse
import sys

HELP = "run a command of vLLM, such as `bench serve` or `run-batch`"
EXAMPLE = "vllm-videollava vllm bench serve --help"
HANDS_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments: all flags are for vLLM's parser."""


def run(args: argparse.Namespace) -> str | None:
    """Run a command of vLLM; return a sentence about the installation's fault, or None."""
    return run_vllm(args.handed_on)


def run_vllm(arguments: list[str]) -> str | None:
    """Run `vllm` with arguments; return a sentence about the installation's fault, or None."""
    from vllm_videollava.compat import name_cpu_distribution

    name_cpu_distribution()
    if problem := find_plugin_problem():
        return problem
    # vLLM's command and the processes that it starts read their arguments from here.
    sys.argv = ["vllm", *arguments]

    from vllm.entrypoints.cli.main import main

    main()


def find_plugin_problem() -> str | None:
    """Return the reason why vLLM does not load this package, or None if it does."""
    from vllm import ModelRegistry, envs
    from vllm.plugins import load_general_plugins

    from vllm_videollava import PLUGIN
    from vllm_videollava.checkpoints.config import ARCHITECTURE

    if envs.VLLM_PLUGINS is not None and PLUGIN not in envs.VLLM_PLUGINS:
        return f"VLLM_PLUGINS is {','.join(envs.VLLM_PLUGINS)!r}; unset it, or add {PLUGIN} to it."
    load_general_plugins()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        return "vLLM does not find the plugin; install this package into vLLM's Python environment."
