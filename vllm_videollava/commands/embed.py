"""`vllm-videollava embed`: write the embeddings of images and videos, so that each is encoded only once."""

import argparse
from collections import Counter
from pathlib import Path

from vllm_videollava.commands.models import find_problem, resolve
from vllm_videollava.commands.serve import DEFAULT_MODEL
from vllm_videollava.compat import name_cpu_distribution

HELP = "write the embeddings of images and videos, which can be asked about in place of them"
EXAMPLE = "vllm-videollava embed clips/*.mp4 -o embeddings"
HANDS_ON = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="image or video")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for FILE.pt")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"folder or repository, by default {DEFAULT_MODEL}")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument(
        "--tower", action="store_true", help="write what a tower makes of each, which a server has yet to project"
    )


def run(args: argparse.Namespace) -> str | None:
    """Encode the files that can be read; return a sentence about the others, or None."""
    name_cpu_distribution()
    model = resolve(args.model)
    if problem := find_problem(model) or _find_clash(args.files) or _find_missing(args.files):
        return problem
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{args.output} cannot be made a folder: {error.strerror}."
    from vllm_videollava.decoding.pool import DecoderUnavailableError
    from vllm_videollava.model.encode_files import FileEncoder, save

    faults = []
    with FileEncoder(model, dtype=args.dtype, projected=not args.tower) as encoder:
        for file in args.files:
            try:
                save(encoder.encode(file), args.output / f"{file.name}.pt")
            except (ValueError, OSError, DecoderUnavailableError) as error:
                faults.append(f"{file}: {error}")
    print(f"Written to {args.output}: {len(args.files) - len(faults)} of {len(args.files)} files.")
    return "\n".join(faults) or None


def _find_clash(files: list[Path]) -> str | None:
    counts = Counter(file.name for file in files)
    twice = next((name for name, count in counts.items() if count > 1), None)
    return (
        twice and f"{twice} is the name of two files, whose embeddings would have one name; write them to two folders."
    )


def _find_missing(files: list[Path]) -> str | None:
    missing = next((file for file in files if not file.is_file()), None)
    return missing and f"{missing} is not a file."
