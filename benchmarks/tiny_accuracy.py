"""Counts how often the tiny checkpoint's answers are right, by kind of question and by precision.

    python -m benchmarks.tiny_accuracy

Draws clips and images that training has not seen, asks vLLM's engine every
question about them, greedily, and writes benchmarks/results/tiny_accuracy.jsonl.
An answer is right if it is, word for word, what is expected. Needs neither
network nor GPU.
"""

import argparse
import gc
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import write_rows
from vllm_videollava import tiny_checkpoint
from vllm_videollava.client import messages
from vllm_videollava.tiny.generator import Example, write_examples

if TYPE_CHECKING:
    from vllm import LLM

SEED = 2026
PRECISIONS = ("float32", "bfloat16", "float16", "int8 weights")


def start_engine(precision: str) -> "LLM":
    """Start vLLM's engine on the tiny checkpoint, with weights of one of `PRECISIONS`, or in 8 bits by vLLM's name."""
    from vllm import LLM

    settings = {"dtype": precision}
    if precision == "int8 weights":
        settings = _int8_settings()
    elif precision not in PRECISIONS:
        settings = {"dtype": "bfloat16", "quantization": precision}
    # The user of this script can read these files anyway.
    return LLM(str(tiny_checkpoint()), max_model_len=1024, enforce_eager=True, allowed_local_media_path="/", **settings)


def _int8_settings() -> dict[str, Any]:
    """Return what makes vLLM quantise weights, and nothing else, while it loads them."""
    from torchao.core.config import config_to_dict
    from torchao.quantization import Int8WeightOnlyConfig

    config = json.dumps(config_to_dict(Int8WeightOnlyConfig()))
    return {
        "dtype": "bfloat16",
        "quantization": "torchao",
        "hf_overrides": {"quantization_config_dict_json": config},
    }


def answer(llm: "LLM", examples: Sequence[Example], **options: Any) -> list[str]:
    """Ask every question as a chat message, media first, and return the answers; `options` are those of `LLM.chat`."""
    from vllm import SamplingParams

    chats = []
    for example in examples:
        media = zip(example.kinds, example.media, strict=True)
        parts = [messages.media_part(kind, messages.file_url(path)) for kind, path in media]
        chats.append(messages.question(example.question.text, parts))
    outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=48), **options)
    return [output.outputs[0].text.strip() for output in outputs]


def accuracy(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Count by kind of question and media, such as "colour, image", the right answers and all of them."""
    counts: dict[str, tuple[int, int]] = {}
    for example, given in zip(examples, answers, strict=True):
        name = f"{example.question.kind}, {' and '.join(example.kinds)}"
        right, asked = counts.get(name, (0, 0))
        counts[name] = right + (given == example.question.answer), asked + 1
    return counts


def main() -> None:
    args = parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        examples = write_examples(Path(folder), args.videos, args.images, SEED)
        for way in PRECISIONS:
            llm = start_engine(way)
            answers = answer(llm, examples)
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            for case, (right, asked) in sorted(accuracy(examples, answers).items()):
                rows.append({"case": case, "way": way, "metric": "right answers", "right": right, "n": asked})
                print(f"{way:14} {case:35} {right:5} of {asked:5}  {100 * right / asked:6.2f} %", flush=True)
    print(f"Written to {write_rows('tiny_accuracy', rows)}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000, metavar="N")
    parser.add_argument("--images", type=int, default=300, metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    main()
