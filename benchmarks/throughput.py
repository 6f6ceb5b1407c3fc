"""Questions about videos answered offline: this package, transformers, and vLLM's LLaMA alone.

    python -m benchmarks.throughput --size middle

All have the same weights, which are random, in transformers' format; LLaMA alone gets prompts of as many
tokens of text, and shows what videos cost. A checkpoint is measured only if this package and transformers
give the same answer. Every video is a new file to every cache; all ways start from the file, and
transformers gets its pixels from this package's decoder. Ways take turns in every round. Rows go to
benchmarks/results/throughput_SIZE.jsonl, or to the folder that --output names.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks import harness, models
from vllm_videollava.client import messages
from vllm_videollava.decoding.pixel_format import PixelFormat
from vllm_videollava.decoding.pixels import IMAGE_MEAN, IMAGE_STD
from vllm_videollava.media.connector import VideoLlavaMediaConnector
from vllm_videollava.text.conversation import SYSTEM_PROMPT
from vllm_videollava.tiny.drawing import write_video
from vllm_videollava.tiny.world import random_clip_scene

VIDEO_TOKENS, CONTEXT = 2056, 4096
MANY, TOKENS = 8, 32
MIXED = (4, 8, 12, 20, 32, 48, 60, 72)
"""Tokens of eight answers; their sum is that of eight answers of 32."""
QUESTION, OTHER_QUESTION = "What does the video show?", "Which way does it move?"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Way(Protocol):
    """Answers questions about clips with a given number of tokens each, greedily."""

    def answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str = QUESTION) -> list[list[int]]: ...


class Engine:
    """This package in vLLM."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._llm = start_engine(folder, allowed_local_media_path="/", **options)

    def answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str = QUESTION) -> list[list[int]]:
        parts = [messages.media_part("video", messages.file_url(clip)) for clip in clips]
        chats = [messages.question(question, [part]) for part in parts]
        return _tokens(self._llm.chat(chats, _sampling(lengths), use_tqdm=False))

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class LlamaAlone:
    """vLLM's LLaMA, with random tokens in place of a clip's."""

    def __init__(self, folder: Path, num_tokens: int) -> None:
        self._llm = start_engine(folder)
        self._num_tokens = num_tokens
        self._random = np.random.default_rng(0)

    def answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str = QUESTION) -> list[list[int]]:
        ids = self._random.integers(3, 700, (len(clips), self._num_tokens)).tolist()
        prompts = [{"prompt_token_ids": prompt} for prompt in ids]
        return _tokens(self._llm.generate(prompts, _sampling(lengths), use_tqdm=False))

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


def start_engine(folder: Path, **options: Any) -> Any:
    from vllm import LLM

    return LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=CONTEXT, max_num_seqs=MANY, **options)


def _sampling(lengths: Sequence[int]) -> list[Any]:
    from vllm import SamplingParams

    return [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False) for length in lengths]


def _tokens(outputs: Sequence[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


class Transformers:
    """transformers' port of the model, with batches of a fixed size; a batch takes as long as its longest answer."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, batch: int) -> None:
        self._model, self._tokenizer, self._batch = model, tokenizer, batch
        pixel_format = PixelFormat(8, models.IMAGE_SIZE, models.IMAGE_SIZE, original=False)
        self._connector = VideoLlavaMediaConnector(pixel_format, allowed_local_media_path="/")
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))

    def answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str = QUESTION) -> list[list[int]]:
        answers = []
        for start in range(0, len(clips), self._batch):
            answers += self._answer(clips[start : start + self._batch], lengths[start : start + self._batch], question)
        return answers

    @torch.inference_mode()
    def _answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str) -> list[list[int]]:
        prompt = f"{SYSTEM_PROMPT} USER: {'<video>' * VIDEO_TOKENS}\n{question} ASSISTANT:"
        ids = self._tokenizer(prompt, return_tensors="pt").input_ids.repeat(len(clips), 1).to(DEVICE)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=torch.stack([self._pixels(clip) for clip in clips]).to(DEVICE, self._model.dtype),
            max_new_tokens=max(lengths),
            min_new_tokens=max(lengths),
            do_sample=False,
            eos_token_id=None,
        )
        return [row[ids.shape[1] :][:length].tolist() for row, length in zip(output, lengths, strict=True)]

    def _pixels(self, clip: Path) -> torch.Tensor:
        frames = self._connector.fetch_video(messages.file_url(clip)).media
        return (torch.from_numpy(np.asarray(frames)).movedim(-1, -3) / 255 - self._mean) / self._std


class Clips:
    """New files, each given out once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._random, self._count = folder, np.random.default_rng(0), 0

    def new(self, count: int) -> list[Path]:
        scenes = [random_clip_scene(self._random) for _ in range(count)]
        self._count += count
        return [write_video(scene, self._folder / f"{self._count}-{i}.mp4") for i, scene in enumerate(scenes)]


def measure(ways: dict[str, Way], clips: Clips, rounds: int) -> Iterator[dict[str, Any]]:
    """Time single clips, the same clips again, and several clips at once; yield rows."""
    samples: dict[tuple[str, str, str, str], list[float]] = {}

    def note(case: str, way: str, metric: str, unit: str, value: float) -> None:
        samples.setdefault((case, way, metric, unit), []).append(value)

    mixed = f"{MANY} videos, {min(MIXED)} to {max(MIXED)} tokens each"
    for round_ in range(rounds):
        order = list(ways)[round_ % len(ways) :] + list(ways)[: round_ % len(ways)]
        lone = {name: clips.new(1) for name in ways}
        for name in order:
            note("new video", name, "time", "s", _seconds(partial(ways[name].answer, lone[name], [TOKENS])))
        for name in order:
            call = partial(ways[name].answer, lone[name], [TOKENS], OTHER_QUESTION)
            note("same video, other question", name, "time", "s", _seconds(call))
        for case, lengths in ((f"{MANY} videos, {TOKENS} tokens each", [TOKENS] * MANY), (mixed, MIXED)):
            for name in order:
                seconds = _seconds(partial(ways[name].answer, clips.new(MANY), lengths))
                note(case, name, "videos answered", "1/s", MANY / seconds)
    for (case, way, metric, unit), values in samples.items():
        yield harness.row(case, way, metric, unit, values)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def check_answers(engine: Engine, reference: Transformers, clips: Clips) -> None:
    """Compare answers.

    Raises:
        ValueError: this package and transformers give different tokens.
    """
    some = clips.new(2)
    ours, theirs = engine.answer(some, [TOKENS] * 2), reference.answer(some, [TOKENS] * 2)
    if ours != theirs:
        raise ValueError(f"This package answers {ours}, transformers {theirs}; nothing is measured.")


def measure_size(name: str, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Measure one size of the model on this machine."""
    from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration

    torch.manual_seed(0)
    size = models.SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = models.write_video_llava(Path(folder, "video-llava"), size)
        llama = models.write_llama(Path(folder, "llama"), size)
        gc.collect()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = VideoLlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval().to(DEVICE)
        clips = Clips(Path(folder))
        engine = Engine(checkpoint)
        check_answers(engine, Transformers(model, tokenizer, 1), clips)
        prompt_tokens = len(tokenizer(f"{SYSTEM_PROMPT} USER: \n{QUESTION} ASSISTANT:").input_ids) + VIDEO_TOKENS
        alone = LlamaAlone(llama, prompt_tokens)
        ways: dict[str, Way] = {"this package": engine, "LLaMA alone": alone}
        ways |= {
            f"transformers, {'one by one' if batch == 1 else f'batches of {batch}'}": Transformers(
                model, tokenizer, batch
            )
            for batch in batches
        }
        for way in ways.values():
            way.answer(clips.new(MANY), [2] * MANY)
        rows = list(measure(ways, clips, rounds))
        engine.close()
        alone.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=models.SIZES, default="tiny", help="shape of the model")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 8], help="batch sizes for transformers")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder for throughput_SIZE.jsonl")
    args = parser.parse_args()
    path = args.output / f"throughput_{args.size}.jsonl"
    try:
        rows = measure_size(args.size, args.batches, args.rounds)
    except ValueError as error:
        sys.exit(str(error))
    path.unlink(missing_ok=True)
    harness.append_rows(path, rows)
    for row in rows:
        print(f"{row['case']:<36}{row['way']:<28}{row['metric']:<18}{row['p50']:>10.4g} {row['unit']}", flush=True)
    print(path)


if __name__ == "__main__":
    main()
