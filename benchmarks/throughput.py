"""Questions about videos answered a second, offline: this package and transformers, in the 7B model's shape.

    python -m benchmarks.throughput

Weights are random, since only their shapes matter to speed. Every clip is new to every cache, has one
question and gets an answer of a fixed number of tokens. transformers gets its pixels ready-made and on
the GPU, and has no attention over time to compute; this package decodes the clips' files. Rows go to
benchmarks/results/throughput.jsonl, or to the folder that --output names. Needs a GPU.
"""

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import harness
from vllm_videollava import tiny_checkpoint
from vllm_videollava.client import messages
from vllm_videollava.tiny.drawing import write_video
from vllm_videollava.tiny.world import random_clip_scene

if TYPE_CHECKING:
    from vllm import LLM

SHAPE_OF_7B = {
    "mm_image_tower": "LanguageBind/LanguageBind_Image",
    "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
    "mm_hidden_size": 1024,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}
QUESTION = "What does the video show?"
# Tokens of a prompt: a clip's, and about those of the template and the question.
CLIP_TOKENS, TEXT_TOKENS = 2056, 48
# As in LanguageBind/Video-LLaVA-7B-hf.
VIDEO_TOKEN, VOCABULARY = 32001, 32064
ENGINES: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    "default": {},
    "encoder in CUDA graphs": {"compilation_config": {"cudagraph_mm_encoder": True}},
}


def write_checkpoint(folder: Path) -> Path:
    """Write the 7B model's config with the tiny checkpoint's tokenizer; there are no weights."""
    shutil.copytree(tiny_checkpoint(), folder, ignore=shutil.ignore_patterns("*.safetensors", "LanguageBind*"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **SHAPE_OF_7B}))
    return folder


def write_videos(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    return [write_video(random_clip_scene(rng), folder / f"{index}.mp4") for index in range(count)]


def measure_engine(way: str, checkpoint: Path, clips: Sequence[Path], tokens: int) -> Iterator[dict[str, Any]]:
    """Time the engine: single requests up to their first token, then many clips at once."""
    from vllm import LLM

    begin = time.perf_counter()
    llm = LLM(str(checkpoint), load_format="dummy", max_model_len=4096, allowed_local_media_path="/", **ENGINES[way])
    yield harness.row("start", f"this package, {way}", "time", "s", [time.perf_counter() - begin])
    lone, many = clips[:10], clips[10:-1]
    _ask(llm, clips[-1:], tokens)
    first = [_seconds(partial(_ask, llm, [clip], 1)) for clip in lone]
    again = [_seconds(partial(_ask, llm, [clip], 1)) for clip in lone]
    yield harness.row("lone clip", f"this package, {way}", "time to first token", "s", first)
    yield harness.row("lone clip again", f"this package, {way}", "time to first token", "s", again)
    seconds = _seconds(partial(_ask, llm, many, tokens))
    yield harness.row(f"many clips, {tokens} tokens", f"this package, {way}", "clips/s", "1/s", [len(many) / seconds])
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()


def _ask(llm: "LLM", clips: Sequence[Path], tokens: int) -> None:
    from vllm import SamplingParams

    chats = [messages.question(QUESTION, [messages.media_part("video", messages.file_url(clip))]) for clip in clips]
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = llm.chat(chats, greedy, use_tqdm=False)
    assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)


def measure_transformers(batches: Sequence[int], tokens: int) -> Iterator[dict[str, Any]]:
    """Time transformers' port of the model, in several sizes of batches."""
    from transformers import LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

    torch.set_default_dtype(torch.bfloat16)
    config = VideoLlavaConfig(text_config=LlamaConfig(vocab_size=VOCABULARY), video_token_index=VIDEO_TOKEN)
    with torch.device("cuda"):
        model = VideoLlavaForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    for batch in batches:
        ids = torch.randint(3, 30000, (batch, TEXT_TOKENS + CLIP_TOKENS), device="cuda")
        ids[:, 20 : 20 + CLIP_TOKENS] = VIDEO_TOKEN
        pixels = torch.randn(batch, 8, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}

        def generate(count: int, inputs=inputs) -> None:
            with torch.inference_mode():
                model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)
            torch.cuda.synchronize()

        generate(2)
        way = f"transformers, batches of {batch}"
        for count in (1, tokens):
            seconds = _seconds(partial(generate, count))
            yield harness.row(f"many clips, {count} tokens", way, "clips/s", "1/s", [batch / seconds])


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder for throughput.jsonl")
    parser.add_argument("--clips", type=int, default=128, help="number of clips")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32], help="batch sizes for transformers")
    parser.add_argument("--engines", nargs="*", default=["eager", "default"], choices=ENGINES)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU: the 7B model's shape needs one.")
    path = args.output / "throughput.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        clips = write_videos(Path(folder, "clips"), args.clips + 11)
        checkpoint = write_checkpoint(Path(folder, "checkpoint"))
        for way in args.engines:
            _report(path, measure_engine(way, checkpoint, clips, args.tokens))
    if args.batches:
        _report(path, measure_transformers(args.batches, args.tokens))
    print(path)


def _report(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        harness.append_rows(path, [row])
        print(f"{row['case']:<28}{row['way']:<36}{row['metric']:<22}{row['p50']:>10.4g} {row['unit']}", flush=True)


if __name__ == "__main__":
    main()
