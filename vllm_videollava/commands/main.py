"""The command `vllm-videollava`: serve a checkpoint, try the tiny one, or check what is installed."""

import argparse
import sys

from vllm_videollava import ARCHITECTURE, PLUGIN, tiny_checkpoint
from vllm_videollava.tiny.world import COLOURS, DIRECTIONS, SHAPES

PROG = "vllm-videollava"
DEFAULT_MODEL = "LanguageBind/Video-LLaVA-7B"
TINY = "tiny"
"""Names the checkpoint that comes with the package."""


def main() -> None:
    # Its flags are for vLLM's parser.
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve a model (with any flag of `vllm serve`; `tiny` is the bundled model)")
    check_parser = commands.add_parser("check", help="tell which vLLM, device and decoder are used")
    check_parser.add_argument("model", nargs="?", help="also tell what this checkpoint resolves to")
    check_parser.set_defaults(run=check)
    demo_parser = commands.add_parser("demo", help="ask the tiny checkpoint about a clip that is drawn for it")
    demo_parser.add_argument("--shape", choices=SHAPES, help="of the clip's only object")
    demo_parser.add_argument("--colour", choices=COLOURS, help="of the clip's only object")
    demo_parser.add_argument("--moves", choices=DIRECTIONS, help="where the clip's only object goes")
    demo_parser.add_argument("--seed", type=int, help="draw the same clip again, with the same wishes")
    demo_parser.set_defaults(run=demo)
    args = parser.parse_args()
    sys.exit(args.run(args))


def serve(flags: list[str]) -> str | None:
    """Run `vllm serve`; without a model, that of the paper, and for `tiny` the one that comes with the package.

    Returns:
        what is wrong with the installation, if anything.
    """
    from vllm_videollava.compat import name_cpu_distribution

    name_cpu_distribution()
    model_and_flags = _model_first(flags)
    if problem := _plugin_problem():
        return problem
    sys.argv = ["vllm", "serve", *model_and_flags]

    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


def _plugin_problem() -> str | None:
    from vllm import ModelRegistry, envs
    from vllm.plugins import load_general_plugins

    if envs.VLLM_PLUGINS is not None and PLUGIN not in envs.VLLM_PLUGINS:
        return f"VLLM_PLUGINS is {','.join(envs.VLLM_PLUGINS)!r}; unset it, or add {PLUGIN} to it."
    load_general_plugins()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        return "vLLM does not find the plugin; install this package into the environment that vLLM is in."


def _model_first(flags: list[str]) -> list[str]:
    """Put the model, a folder or repository, before the other flags. What is what is up to vLLM's own parser."""
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
    return [str(tiny_checkpoint()), *name, *flags]


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

    parser = ServeSubcommand().subparser_init(FlexibleArgumentParser(prog=PROG).add_subparsers())
    parser.usage = f"{PROG} serve [model] [options]"
    parser.description = (
        "Serve Video-LLaVA over HTTP, with any flag of `vllm serve`. The model is a folder or a Hugging Face "
        f"repository, by default {DEFAULT_MODEL}; `{TINY}` is the one that comes with this package."
    )
    parser.epilog = parser.epilog.replace("vllm serve", f"{PROG} serve")
    parser.set_defaults(model=DEFAULT_MODEL)
    return parser


def demo(args: argparse.Namespace) -> str | None:
    """Run the demo; return what went wrong, if anything."""
    from vllm_videollava.commands.demo import run_demo

    if args.seed is not None and args.seed < 0:
        return "--seed must not be negative."
    try:
        run_demo(args.shape, args.colour, args.moves, args.seed)
    except RuntimeError as error:
        return str(error)


def check(args: argparse.Namespace) -> int:
    """Print a few lines about the installation; return 1 if something is missing."""
    import vllm
    from vllm.platforms import current_platform

    problem = _plugin_problem()
    print(f"plugin   {f'NOT LOADED: {problem}' if problem else 'found'}")
    print(f"vllm     {vllm.__version__}")
    print(f"device   {current_platform.device_name}")
    decodes = _check_decoder()
    return 1 if problem or not decodes or (args.model and not _check_model(args.model)) else 0


def _check_decoder() -> bool:
    from importlib.metadata import version

    from vllm_videollava.decoding.settings import read_settings
    from vllm_videollava.media.io import check_decoding

    try:
        name, distribution = {"pyav": ("PyAV", "av"), "decord": ("decord", "decord2")}[read_settings().decoder]
        check_decoding()
    except (ValueError, RuntimeError) as error:
        print(f"decoder  NOT WORKING: {error}")
        return False
    print(f"decoder  {name} {version(distribution)}")
    return True


def _check_model(model: str) -> bool:
    from transformers import AutoConfig

    from vllm_videollava.checkpoints.config import VideoLlavaConfig

    try:
        config = AutoConfig.from_pretrained(tiny_checkpoint() if model == TINY else model)
    except (ValueError, OSError) as error:
        print(f"model    {model}: {error}")
        return False
    if not isinstance(config, VideoLlavaConfig):
        print(f"model    {model}: {config.model_type} is not Video-LLaVA; vLLM serves it without this package")
        return False
    text, video = config.text_config, config.video_config
    print(f"model    {model}: {'original' if config.original_format else 'transformers'} format")
    print(f"         LLaMA: {text.num_hidden_layers} layers of {text.hidden_size}, vocabulary {text.vocab_size}")
    print(f"         image: {config.tokens_per_image} tokens at {config.image_config.image_size} pixels")
    print(f"         video: {config.tokens_per_video} tokens, {config.num_frames} frames at {video.image_size} pixels")
    print(f"         temporal attention: {'yes' if video.add_time_attn else 'no'}")
    return True


if __name__ == "__main__":
    main()
