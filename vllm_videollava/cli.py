"""The command `vllm-videollava`: serve a checkpoint, try the tiny one, or check what is installed."""

import argparse
import sys

from vllm_videollava import ARCHITECTURE, tiny_checkpoint
from vllm_videollava.tiny.world import COLOURS, DIRECTIONS, SHAPES

DEFAULT_MODEL = "LanguageBind/Video-LLaVA-7B"
TINY = "tiny"
"""Names the checkpoint that comes with the package."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="vllm-videollava", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser("serve", add_help=False, help="what `vllm serve` does; its model may be `tiny`")
    serve_parser.set_defaults(run=serve)
    check_parser = commands.add_parser("check", help="tell which vLLM, device and decoder are used")
    check_parser.add_argument("model", nargs="?", help="also tell what this checkpoint resolves to")
    check_parser.set_defaults(run=check)
    demo_parser = commands.add_parser("demo", help="ask the tiny checkpoint about a clip that is drawn for it")
    demo_parser.add_argument("--shape", choices=SHAPES, help="of the clip's only object")
    demo_parser.add_argument("--colour", choices=COLOURS, help="of the clip's only object")
    demo_parser.add_argument("--moves", choices=DIRECTIONS, help="where the clip's only object goes")
    demo_parser.add_argument("--seed", type=int, help="draw the same clip again, with the same wishes")
    demo_parser.set_defaults(run=demo)
    # What follows `serve` is for vLLM's parser.
    args, rest = parser.parse_known_args(sys.argv[1:2] if sys.argv[1:2] == ["serve"] else None)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    sys.exit(args.run(args))


def serve(args: argparse.Namespace) -> None:
    """Run `vllm serve`; without a model, that of the paper, and for `tiny` the one that comes with the package."""
    from vllm_videollava.compat import name_cpu_distribution

    name_cpu_distribution()
    flags = sys.argv[2:]
    names_model = any(flag.split("=")[0] in ("--model", "--config", "--help", "-h") for flag in flags)
    if (not flags or flags[0].startswith("-")) and not names_model:
        flags.insert(0, DEFAULT_MODEL)
    if flags[0] == TINY:
        flags[:1] = [str(tiny_checkpoint()), f"--served-model-name={TINY}"]
    sys.argv = ["vllm", "serve", *flags]

    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


def demo(args: argparse.Namespace) -> str | None:
    """Run the demo; return what went wrong, if anything."""
    from vllm_videollava.tiny.demo import run_demo

    if args.seed is not None and args.seed < 0:
        return "--seed must not be negative."
    try:
        run_demo(args.shape, args.colour, args.moves, args.seed)
    except RuntimeError as error:
        return str(error)


def check(args: argparse.Namespace) -> int:
    """Print a few lines about the installation; return 1 if something is missing."""
    import av
    import vllm
    from vllm import ModelRegistry
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    found = ARCHITECTURE in ModelRegistry.get_supported_archs()
    print(f"plugin   {'found' if found else 'NOT FOUND: is the package installed in this environment?'}")
    print(f"vllm     {vllm.__version__}")
    print(f"device   {current_platform.device_name}")
    print(f"decoder  PyAV {av.__version__}")
    return 0 if found and (args.model is None or _check_model(args.model)) else 1


def _check_model(model: str) -> bool:
    from transformers import AutoConfig

    from vllm_videollava.config import VideoLlavaConfig

    try:
        config = AutoConfig.from_pretrained(tiny_checkpoint() if model == TINY else model)
    except (ValueError, OSError) as error:
        print(f"model    {model}: {error}")
        return False
    if not isinstance(config, VideoLlavaConfig):
        print(f"model    {model}: {config.model_type}, which is no Video-LLaVA; vLLM serves it as without this package")
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
