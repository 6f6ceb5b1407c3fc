"""Ask one question about every clip in a folder, and write one line of JSON for each clip.

    python examples/offline_batch.py FOLDER OUT.jsonl --question "What happens in this clip?"

A line is {"clip": path within FOLDER, "answer": text}, or {"clip": ..., "error":
sentence} for a clip that cannot be decoded. You may interrupt it at any time:
run the same command again, and it continues with the clips that OUT.jsonl does
not have yet. While the engine starts, Ctrl-C takes effect only after the start.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

SUFFIXES = {".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".webp", ".wmv"}
BATCH_SIZE = 16


def main() -> None:
    args = parse_args()
    clips = find_clips(args.folder)
    done = read_done(args.out)
    left = [clip for clip in clips if clip not in done]
    try:
        if left:
            answer_all(left, args)
    except KeyboardInterrupt:
        num_done = len(read_done(args.out) & set(clips))
        sys.exit(f"\nInterrupted: {num_done} of {len(clips)} clips are done; run the same command again for the rest.")
    print(f"All {len(clips)} clips are done, see {args.out}.")


def find_clips(folder: Path) -> list[str]:
    """Return the clips in a folder and its subfolders, as paths relative to the folder."""
    if not folder.is_dir():
        sys.exit(f"{folder} is not a folder.")
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def read_done(out: Path) -> set[str]:
    """Return the clips that `out` has lines for, and remove an incomplete last line from it."""
    content = out.read_bytes() if out.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    try:
        done = {json.loads(line)["clip"] for line in whole.splitlines()}
    except (ValueError, TypeError, KeyError):
        sys.exit(f"{out} was not written by this script; choose another file.")
    if whole != content:
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return done


def answer_all(clips: list[str], args: argparse.Namespace) -> None:
    # Imported here, because the import takes seconds and there may be nothing to do.
    from vllm import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=args.max_tokens)
    with args.out.open("a") as file:
        # The user of this script can read these files anyway.
        with hold_interrupts():
            llm = LLM(
                args.model,
                dtype=args.dtype,
                max_model_len=args.max_model_len,
                enforce_eager=args.enforce_eager,
                allowed_local_media_path="/",
            )
        with tqdm(total=len(clips), unit="clip") as progress:
            for start in range(0, len(clips), BATCH_SIZE):
                batch = [args.folder / clip for clip in clips[start : start + BATCH_SIZE]]
                for path, result in ask(llm, batch, args.question, params):
                    line = {"clip": path.relative_to(args.folder).as_posix(), **result}
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    progress.update()


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the block ends, and make processes that are started in the block ignore it.

    A terminal sends Ctrl-C to all processes, and the engine's would die in the middle of their work.
    """
    # Started before the block; inside it, the tracker would let interrupts through again.
    resource_tracker.ensure_running()
    held = []
    handler = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)
    if held:
        raise KeyboardInterrupt


def ask(
    llm: "LLM", paths: list[Path], question: str, params: "SamplingParams"
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the errors of the clips that cannot be decoded, then the answers about the others."""
    asked = []
    for path in paths:
        # Clips are added one by one, so that an error is about one clip; the engine still answers them together.
        try:
            llm.enqueue_chat(message(path, question), params, use_tqdm=False)
        except (ValueError, OSError) as error:
            yield path, {"error": str(error)}
        else:
            asked.append(path)
    outputs = llm.wait_for_completion(use_tqdm=False)
    for path, output in zip(asked, outputs, strict=True):
        yield path, {"answer": output.outputs[0].text.strip()}


def message(path: Path, question: str) -> list[dict]:
    video = {"type": "video_url", "video_url": {"url": path.resolve().as_uri()}}
    return [{"role": "user", "content": [video, {"type": "text", "text": question}]}]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--model", default="LanguageBind/Video-LLaVA-7B", help="folder or Hugging Face repository")
    parser.add_argument("--question", default="What happens in this clip?")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="maximum tokens of an answer")
    parser.add_argument("--dtype", default="auto", help="type of weights and activations, such as float32")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="maximum tokens of prompt and answer")
    parser.add_argument("--enforce-eager", action="store_true", help="start faster but answer more slowly")
    return parser.parse_args()


if __name__ == "__main__":
    main()
