"""Where the time goes when one new video is asked about, and when 32 are asked about at once.

    python -m benchmarks.where_time_goes --size middle

Sizes, clips and options of the engine are those of `benchmarks.throughput`, and weights are random. An answer has
33 tokens: LLaMA makes the first one when it has read the prompt, and then 32 more. Seconds are those of all videos of
a case together:

- decode, resize: in this process, clip after clip, because vLLM's offline interface has videos decoded one after the
  other. The decoder has as many threads as a worker's decoder would have.
- prefill: prompts of text, as long as those with a video, are each answered with one token. Where the engine takes
  only 8 prompts at once, 8 are timed, and the time is multiplied by four.
- 32 tokens: the same prompts, which the engine now has in its cache, are each answered with 32 tokens.
- prepare: clips that have just been asked about are read, hashed, tokenised, processed and sent to the engine again.
  Their pixels are still there, and the engine has them in its cache, so that it has little to do meanwhile.
- transfer: from the time when a request is sent until the tower begins. It is measured for a single video only,
  because several wait for each other.
- patch embedding, tower's layers, projector: in vLLM's worker, while the whole is timed.
- wall time: the whole; until sent: its part until the last request is sent to the engine.
- other: what the stages leave of the wall time, or 0. Messages between processes are in it. With 32 videos, decoding
  runs beside the engine, so that the stages may take longer than the whole.
- device waits for CPU: what the stages from patch embedding to 32 tokens leave of the wall time, or 0. The device
  really waits longer, because these stages contain some of the CPU's work.

Rows go to benchmarks/results/where_time_goes_SIZE.jsonl, or to the folder that --output names.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import encoder_clock, harness, models, throughput
from benchmarks.clips import NewClips
from benchmarks.encoder_clock import LAYERS, PATCHES, PROJECTOR
from benchmarks.throughput import DEVICE, Engine
from vllm_videollava.decoding.cpu_count import cpu_count
from vllm_videollava.decoding.pixels import frame_pixels
from vllm_videollava.decoding.pool import MAX_THREADS
from vllm_videollava.decoding.settings import read_settings
from vllm_videollava.decoding.video import decode_frames

CASES = {"1 video": 1, "32 videos": 32}
ROUNDS_OF_ONE = 3
NEW_TOKENS = 32
DECODE, RESIZE, PREPARE, TRANSFER = "decode", "resize", "prepare", "transfer"
PREFILL, TOKENS = "prefill", f"{NEW_TOKENS} tokens"
WALL, SENT, OTHER, WAITS = "wall time", "until sent", "other", "device waits for CPU"
ON_DEVICE = (PATCHES, LAYERS, PROJECTOR, PREFILL, TOKENS)
PROCESSES = {
    **dict.fromkeys((DECODE, RESIZE), "decoder"),
    **dict.fromkeys((PREPARE, SENT), "API server"),
    **dict.fromkeys((*ON_DEVICE, WAITS), "engine"),
    **dict.fromkeys((TRANSFER, WALL, OTHER), "all"),
}

Seconds = dict[str, float]
"""Seconds by stage, of all videos of a case together."""


def time_decoding(engine: Engine, clips: Sequence[Path]) -> Seconds:
    """Decode clips as a decoding worker does."""
    pixel_format = engine.llm.model_config.hf_config.pixel_format
    threads, resizing = min(MAX_THREADS, cpu_count()), []

    def resize(frame: np.ndarray) -> np.ndarray:
        begin = time.perf_counter()
        pixels = frame_pixels(frame, pixel_format.video_size, original=pixel_format.original)
        resizing.append(time.perf_counter() - begin)
        return pixels

    begin = time.perf_counter()
    for clip in clips:
        decode_frames(io.BytesIO(clip.read_bytes()), pixel_format.num_frames, resize, read_settings(), threads)
    return {DECODE: time.perf_counter() - begin - sum(resizing), RESIZE: sum(resizing)}


def time_llama(engine: Engine, clips: Sequence[Path]) -> Seconds:
    """Have prompts of text answered, and return the seconds that as many prompts take as there are clips."""
    at_once = min(len(clips), engine.many)
    prompts = engine.random_prompts(at_once)
    prefill = harness.seconds(partial(engine.answer_text, prompts, [1] * at_once))
    tokens = harness.seconds(partial(engine.answer_text, prompts, [NEW_TOKENS] * at_once))
    return {PREFILL: prefill * len(clips) / at_once, TOKENS: tokens * len(clips) / at_once}


def time_answers(engine: Engine, clips: Sequence[Path]) -> Seconds:
    """Ask about new clips, and then once more, when they are decoded and the engine knows them."""
    engine.llm.apply_model(encoder_clock.start)
    begin, sent, end = _ask(engine, clips, 1 + NEW_TOKENS)
    seconds = engine.llm.apply_model(encoder_clock.stop)[0]
    # All processes of a machine share this clock.
    transfer = max(0, seconds.pop(encoder_clock.BEGIN) - sent)
    engine.llm.reset_mm_cache()
    # The last ones first, because the engine's prefix cache may have lost the first ones.
    begin_again, sent_again, _ = _ask(engine, clips[::-1], 1)
    return {
        PREPARE: sent_again - begin_again,
        **({TRANSFER: transfer} if len(clips) == 1 else {}),
        **seconds,
        SENT: sent - begin,
        WALL: end - begin,
    }


def _ask(engine: Engine, clips: Sequence[Path], tokens: int) -> tuple[float, float, float]:
    """Return when this begins, when all questions are sent to the engine, and when they are answered."""
    chats, sampling = throughput.chats_about(clips), throughput.sampling([tokens] * len(clips))
    begin = time.perf_counter()
    engine.llm.enqueue_chat(chats, sampling, use_tqdm=False)
    sent = time.perf_counter()
    engine.llm.wait_for_completion(use_tqdm=False)
    return begin, sent, time.perf_counter()


def remainders(seconds: Mapping[str, float]) -> tuple[float, float]:
    """Return the seconds of the wall time that no stage explains, and the percentage in which the device waits."""
    wall = seconds[WALL]
    stages = sum(value for stage, value in seconds.items() if stage not in (WALL, SENT))
    busy = sum(seconds[stage] for stage in ON_DEVICE)
    return max(0, wall - stages), max(0, 100 * (1 - busy / wall))


def measure(engine: Engine, clips: NewClips, rounds: int) -> Iterator[dict[str, Any]]:
    """Time the stages of each case, and yield each row as soon as it is known."""
    for case, count in CASES.items():
        _warm_up(engine, clips, count)
        medians: Seconds = {}
        for stage, values in _samples(engine, clips, count, rounds * (ROUNDS_OF_ONE if count == 1 else 1)):
            row = harness.row(case, PROCESSES[stage], stage, "s", values)
            medians[stage] = row["p50"]
            yield row
        other, waits = remainders(medians)
        yield harness.row(case, PROCESSES[OTHER], OTHER, "s", [other])
        yield harness.row(case, PROCESSES[WAITS], WAITS, "%", [waits])


def _warm_up(engine: Engine, clips: NewClips, count: int) -> None:
    # On a GPU, kernels are compiled when a batch first has some size.
    if count == 1 or DEVICE.type == "cuda":
        engine.answer(clips.take(count), [2] * count)
        engine.answer_text(engine.random_prompts(count), [2] * count)


def _samples(engine: Engine, clips: NewClips, count: int, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Yield all seconds of each stage, as soon as the last round has added its own."""
    samples: dict[str, list[float]] = {}
    for turn in range(rounds):
        for timing in (time_decoding, time_llama, time_answers):
            for stage, seconds in timing(engine, clips.take(count)).items():
                samples.setdefault(stage, []).append(seconds)
                if turn == rounds - 1:
                    yield stage, samples[stage]


def measure_size(name: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Start an engine for a size of the model, and measure it."""
    # Without it, vLLM sends no functions to its workers.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips = NewClips(folder, *throughput.PLANS[name].clip)
        with throughput.ways_of(name, folder)[throughput.OURS]() as engine:
            yield from measure(engine, clips, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=throughput.PLANS, default="7B", help="shape of the model")
    parser.add_argument(
        "--rounds", type=int, default=1, help=f"number of rounds, of which one video has {ROUNDS_OF_ONE} times as many"
    )
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder for where_time_goes_SIZE.jsonl")
    args = parser.parse_args()
    models.check_device(args.size)
    harness.use_all_cores()
    path = args.output / f"where_time_goes_{args.size}.jsonl"
    path.unlink(missing_ok=True)
    for row in measure_size(args.size, args.rounds):
        harness.append_rows(path, [row])
        print(f"{row['case']:<12}{row['way']:<12}{row['metric']:<24}{row['p50']:>10.4g} {row['unit']}", flush=True)
    print(path)


if __name__ == "__main__":
    main()
