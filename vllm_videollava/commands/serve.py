"""`vllm-videollava serve`: serve a model over HTTP, as `vllm serve` does."""

import argparse

from vllm_videollava.commands.models import TINY, find_problem, resolve
from vllm_videollava.commands.vllm import run_vllm
from vllm_videollava.compat import name_cpu_distribution

HELP = "serve a model, by default Video-LLaVA-7B; takes any flag of `vllm serve`"
EXAMPLE = "vllm-videollava serve tiny --port 8000"
HANDS_ON = True
PROG = "vllm-videollava serve"
DEFAULT_MODEL = "LanguageBind/Video-LLaVA-7B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments: all flags are for vLLM's parser."""


def run(args: argparse.Namespace) -> str | None:
    """Run `vllm serve`. The default model is that of the paper; `tiny` is the one that comes with the package.

    Returns:
        A sentence about the installation's fault, or None.
    """
    # vLLM's parser looks up the version of `vllm`, but its CPU build has another name.
    name_cpu_distribution()
    flags = _model_first(args.handed_on)
    return find_problem(flags[0]) or run_vllm(["serve", *flags])


def _model_first(flags: list[str]) -> list[str]:
    """Move the model, a folder or repository, before the other flags; vLLM's own parser tells which one it is."""
    parser = _serve_parser()
    args = parser.parse_args(flags)
    if args.model_tag is not None:
        model = args.model_tag
        index = _index_of_model(parser, flags, model)
        flags = flags[:index] + flags[index + 1 :]
    else:
        model = args.model
        flags = _without_model_option(flags)
    if model != TINY:
        return [model, *flags]
    name = [f"--served-model-name={TINY}"] if args.served_model_name is None else []
    return [resolve(TINY), *name, *flags]


def _index_of_model(parser: argparse.ArgumentParser, flags: list[str], model: str) -> int:
    # The same word may be the value of another flag.
    for index, flag in enumerate(flags):
        changed = [*flags[:index], f"{model}?", *flags[index + 1 :]]
        if flag == model and parser.parse_args(changed).model_tag == f"{model}?":
            return index
    raise AssertionError(f"{model} is not one of the flags.")


def _without_model_option(flags: list[str]) -> list[str]:
    for index, flag in enumerate(flags):
        if flag == "--model":
            return flags[:index] + flags[index + 2 :]
        if flag.startswith("--model="):
            return flags[:index] + flags[index + 1 :]
    return flags


def _serve_parser() -> argparse.ArgumentParser:
    """Make the parser of `vllm serve`, with our name and default model."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = ServeSubcommand().subparser_init(FlexibleArgumentParser(prog="vllm-videollava").add_subparsers())
    parser.usage = f"{PROG} [model] [options]"
    parser.description = (
        "Serve Video-LLaVA over HTTP, with any flag of `vllm serve`. The model is a folder or a Hugging Face "
        f"repository, by default {DEFAULT_MODEL}; `{TINY}` is the one that comes with this package."
    )
    parser.epilog = parser.epilog.replace("vllm serve", PROG)
    parser.set_defaults(model=DEFAULT_MODEL)
    return parser
