"""`vllm-videollava convert`: write a checkpoint anew as one folder."""

import argparse
import re
import signal
import sys
from pathlib import Path

from vllm_videollava.commands.models import resolve

HELP = "write a checkpoint anew as one folder: a fine-tune merged with its base, rounded or quantised"
EXAMPLE = "vllm-videollava convert my-lora my-model --bits 4"
HANDS_ON = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="checkpoint, LoRA or projector: a folder or a Hugging Face repository")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--base", help="folder or repository of the model that a LoRA or projector changes")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="by default, the source's")
    parser.add_argument(
        "--shard-size", type=_size, default="4GB", metavar="SIZE", help="most that a file has, by default 4GB"
    )
    parser.add_argument("--bits", type=int, choices=[4, 8], help="quantise LLaMA's linear layers")
    parser.add_argument("--to", choices=["transformers"], help="write transformers' format")


def _size(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 4GB")
    return text


def run(args: argparse.Namespace) -> str | int | None:
    """Convert a checkpoint; return an error's sentence, or the exit status of a signal, or None."""
    signal.signal(signal.SIGTERM, _end)
    try:
        from vllm_videollava.conversion.convert import convert

        losses = convert(
            resolve(args.source),
            args.out,
            base=args.base and resolve(args.base),
            dtype=args.dtype,
            shard_size=args.shard_size,
            bits=args.bits,
            to_transformers=args.to == "transformers",
        )
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} cannot be read or written: {error.strerror}." if error.filename else str(error)
    except KeyboardInterrupt:
        print("Interrupted; what was written has been removed.", file=sys.stderr)
        return 128 + signal.SIGINT
    for loss in losses:
        print(loss)
    print(f"Written to {args.out}")


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)
