"""Questions about videos, answered offline by this package, by vLLM's LLaMA alone, and by transformers.

    python -m benchmarks.throughput --size middle

Weights are random. For the small sizes, this package and transformers load the same ones, in transformers'
format; ways take turns, and nothing is measured unless all of these give the same tokens. The 7B model's shape
needs a GPU. There, the ways run one after the other, and their answers cannot be compared, because transformers
lacks the original's attention over time. LLaMA alone gets prompts of as many tokens of text, and shows what
videos cost. vLLM's LLaVA-NeXT-Video around the same LLaMA is measured where torchvision can be imported; its
tower reads 14 frames of 336 pixels, and not 8 of 224.

Every video is a new file to every cache, and each way starts from the file; transformers gets its pixels from
this package's decoder. vLLM's offline interface has a batch's videos decoded one after the other, each with
several threads; for transformers, several are decoded at once. The second question about a video finds the
video's tokens in vLLM's prefix cache; transformers would compute everything again, and is not asked.

Rows go to benchmarks/results/throughput_SIZE.jsonl, or to the folder that --output names; --ways is part of the
file's name.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from benchmarks import harness, models
from benchmarks.clips import NewClips
from vllm_videollava.client import messages
from vllm_videollava.decoding.cpu_count import cpu_count
from vllm_videollava.decoding.pixels import IMAGE_MEAN, IMAGE_STD, frame_pixels
from vllm_videollava.decoding.pool import MAX_THREADS
from vllm_videollava.decoding.settings import read_settings
from vllm_videollava.decoding.video import decode_frames
from vllm_videollava.text.conversation import SYSTEM_PROMPT

OURS, IN_GRAPHS = "this package", "encoder graphs"
LLAMA, LLAVA_NEXT, ONE_BY_ONE = "LLaMA alone", "LLaVA-NeXT-Video", "transformers, one by one"
FRAMES, VIDEO_TOKENS, CONTEXT = 8, 2056, 4096
QUESTION, OTHER_QUESTION = "What does the video show?", "Which way does it move?"
NEW, AGAIN = "new video", "same video, other question"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Plan(NamedTuple):
    """What is asked of one size of the model.

    Attributes:
        lone: videos that each round asks about one after the other, before many at once.
        many: videos at once, for vLLM.
        tokens: tokens of each answer, when all are equally long.
        batches: sizes of transformers' batches; the 7B model is asked about one batch, or about 4 videos in turn.
        clip: height in pixels and duration in seconds of a video.
        engine: options for vLLM.
    """

    lone: int
    many: int
    tokens: int
    batches: tuple[int, ...]
    clip: tuple[int, int]
    engine: dict[str, Any]


_ON_CPU = Plan(20, 8, 32, (1, 8), (240, 2), {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8})
PLANS = {
    "tiny": _ON_CPU._replace(lone=10),
    "middle": _ON_CPU,
    "7B": Plan(10, 256, 128, (1, 32, 64), (360, 10), {"dtype": "bfloat16"}),
}


def mixed_lengths(count: int, tokens: int) -> list[int]:
    """Return lengths of answers from an eighth of `tokens` to almost twice as many; `tokens` on average.

    Raises:
        ValueError: `count` is less than 2.
    """
    if count < 2:
        raise ValueError(f"count is {count}; it must be at least 2.")
    lengths = np.linspace(tokens / 8, tokens * 15 / 8, count).round().astype(int)
    return np.random.default_rng(0).permutation(lengths).tolist()


class Way(Protocol):
    """Answers questions about clips with a given number of tokens each, greedily.

    Attributes:
        many: clips at once.
        takes_single: whether single clips are timed too.
    """

    many: int
    takes_single: bool

    def answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str = QUESTION) -> list[list[int]]: ...


class Engine:
    """vLLM, with this package's model or with LLaMA alone, which gets random tokens in place of a clip's."""

    def __init__(self, folder: Path, many: int, *, is_llama: bool, **options: Any) -> None:
        from vllm import LLM

        self.many, self.takes_single, self._is_llama = many, not is_llama, is_llama
        self._random = np.random.default_rng(0)
        self.llm = LLM(str(folder), max_model_len=CONTEXT, allowed_local_media_path="/", **options)

    def answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str = QUESTION) -> list[list[int]]:
        if self._is_llama:
            return self.answer_text(self.random_prompts(len(clips), question), lengths)
        outputs = self.llm.chat(chats_about(clips, question), sampling(lengths), use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def random_prompts(self, count: int, question: str = QUESTION) -> list[list[int]]:
        """Return new random tokens, as many as in each question about a clip."""
        # Ids below 259 may be placeholders of images and videos.
        return self._random.integers(260, 380, (count, len(_prompt_ids(question)))).tolist()

    def answer_text(self, prompts: Sequence[list[int]], lengths: Sequence[int]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self.llm.generate(prompts, sampling(lengths), use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def chats_about(clips: Sequence[Path], question: str = QUESTION) -> list[list[Any]]:
    """Return a conversation about each clip."""
    return [messages.question(question, [messages.media_part("video", messages.file_url(clip))]) for clip in clips]


def sampling(lengths: Sequence[int]) -> list[Any]:
    """Return vLLM's parameters for greedy answers with these numbers of tokens."""
    from vllm import SamplingParams

    return [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False) for length in lengths]


class Transformers:
    """transformers' port of the model, in batches; a batch takes as long as its longest answer."""

    def __init__(self, model: torch.nn.Module, batch: int, many: int) -> None:
        # A batch of one is the same with every size of batches.
        self.many, self.takes_single, self._model, self._batch = many, batch == 1, model, batch
        self._mean, self._std = (torch.tensor(x, device=DEVICE).view(3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))

    def answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str = QUESTION) -> list[list[int]]:
        starts = range(0, len(clips), self._batch)
        batches = [slice(start, start + self._batch) for start in starts]
        return [ids for batch in batches for ids in self._answer(clips[batch], lengths[batch], question)]

    @torch.inference_mode()
    def _answer(self, clips: Sequence[Path], lengths: Sequence[int], question: str) -> list[list[int]]:
        ids = torch.tensor(_prompt_ids(question), device=DEVICE).repeat(len(clips), 1)
        with ThreadPoolExecutor() as threads:
            decode = partial(_decode, threads=max(1, min(MAX_THREADS, cpu_count()) // len(clips)))
            frames = torch.from_numpy(np.stack(list(threads.map(decode, clips)))).to(DEVICE)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=((frames.movedim(-1, -3) / 255 - self._mean) / self._std).to(self._model.dtype),
            max_new_tokens=max(lengths),
            min_new_tokens=max(lengths),
            do_sample=False,
            eos_token_id=None,
        )
        return [row[ids.shape[1] :][:length].tolist() for row, length in zip(output, lengths, strict=True)]


def _decode(clip: Path, threads: int) -> np.ndarray:
    transform = partial(frame_pixels, size=models.IMAGE_SIZE, original=False)
    return decode_frames(io.BytesIO(clip.read_bytes()), FRAMES, transform, read_settings(), threads)


@cache
def _prompt_ids(question: str) -> list[int]:
    text = f"{SYSTEM_PROMPT} USER: {'<video>' * VIDEO_TOKENS}\n{question} ASSISTANT:"
    return models.make_tokenizer()(text).input_ids


Start = Callable[[], AbstractContextManager[Way]]


def ways_of(name: str, folder: Path) -> dict[str, Start]:
    """Return what starts each way of answering, for a size of the model; checkpoints are written into `folder`."""
    plan = PLANS[name]
    llama = models.write_llama(folder / "llama", models.SIZES[name])
    checkpoint, weights = models.write_checkpoint(folder / "video-llava", name)
    graphs = {"compilation_config": {"cudagraph_mm_encoder": True}}
    start = partial(_start_engine, many=plan.many, **plan.engine)
    ways: dict[str, Start] = {OURS: partial(start, checkpoint, is_llama=False, **weights)}
    if name in models.WITHOUT_WEIGHTS:
        ways[IN_GRAPHS] = partial(start, checkpoint, is_llama=False, **weights, **graphs)
    ways[LLAMA] = partial(start, llama, is_llama=True, load_format="dummy")
    if has_torchvision():
        ways[LLAVA_NEXT] = partial(_start_llava_next, folder / "llava-next-video", name)
    for batch in plan.batches:
        many = max(4, batch) if weights else plan.many
        key = ONE_BY_ONE if batch == 1 else f"transformers, batches of {batch}"
        ways[key] = partial(_start_transformers, checkpoint if not weights else None, name, batch, many)
    return ways


@contextlib.contextmanager
def _start_engine(*args: Any, **options: Any) -> Iterator[Way]:
    engine = Engine(*args, **options)
    try:
        yield engine
    finally:
        engine.close()


def _start_llava_next(folder: Path, name: str) -> AbstractContextManager[Way]:
    plan, frames = PLANS[name], {"video": {"num_frames": models.LLAVA_NEXT_FRAMES}}
    checkpoint = models.write_llava_next_video(folder, models.SIZES[name])
    options = {"is_llama": False, "load_format": "dummy", "media_io_kwargs": frames}
    return _start_engine(checkpoint, plan.many, **options, **plan.engine)


@contextlib.contextmanager
def _start_transformers(checkpoint: Path | None, name: str, batch: int, many: int) -> Iterator[Way]:
    from transformers import VideoLlavaForConditionalGeneration

    if checkpoint is None:
        config = models.video_llava_config(models.SIZES[name])
        torch.set_default_dtype(torch.bfloat16)
        with DEVICE:
            model = VideoLlavaForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    else:
        model = VideoLlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    yield Transformers(model.eval(), batch, many)


def measure(ways: dict[str, Way], clips: NewClips, plan: Plan, rounds: int) -> Iterator[dict[str, Any]]:
    """Time first tokens for single clips and other questions about them, then many clips at once; yield rows."""
    for way in ways.values():
        # All at once, since a GPU compiles for large batches only when they come.
        count = way.many if DEVICE.type == "cuda" else 2
        way.answer(clips.take(count), [2] * count)
    for case, samples in _time_lone_clips(ways, clips, plan, rounds).items():
        for name, values in samples.items():
            yield harness.row(case, name, "time to first token", "s", values)
    for case, lengths_of in (
        (f"{plan.tokens} tokens each", lambda count: [plan.tokens] * count),
        (f"{min(mixed_lengths(8, plan.tokens))} to {max(mixed_lengths(8, plan.tokens))} tokens each",
         lambda count: mixed_lengths(count, plan.tokens)),
    ):  # fmt: skip
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds):
            for name in _order(ways, turn):
                many = ways[name].many
                seconds = harness.seconds(partial(ways[name].answer, clips.take(many), lengths_of(many)))
                rates[name].append(many / seconds)
        for name, values in rates.items():
            yield harness.row(f"many videos, {case}", name, "videos answered", "1/s", values)


def _time_lone_clips(ways, clips: NewClips, plan: Plan, rounds: int) -> dict[str, dict[str, list[float]]]:
    ways = {name: way for name, way in ways.items() if way.takes_single}
    samples: dict[str, dict[str, list[float]]] = {NEW: {}, AGAIN: {}}
    for turn in range(rounds * plan.lone):
        for name in _order(ways, turn):
            clip, way = clips.take(1), ways[name]
            questions = {NEW: QUESTION, AGAIN: OTHER_QUESTION} if isinstance(way, Engine) else {NEW: QUESTION}
            for case, question in questions.items():
                samples[case].setdefault(name, []).append(harness.seconds(partial(way.answer, clip, [1], question)))
    return samples


def _order(ways: dict[str, Way], turn: int) -> list[str]:
    first = turn % max(1, len(ways))
    return [*ways][first:] + [*ways][:first]


def check_answers(ways: dict[str, Way], clips: NewClips, tokens: int) -> None:
    """Compare the answers of ways with the same weights, about two videos that differ.

    Raises:
        ValueError: the ways differ, or the videos get the same answer.
    """
    some = clips.take(2)
    answers = {name: way.answer(some, [tokens] * 2) for name, way in ways.items()}
    first = next(iter(answers.values()))
    if any(other != first for other in answers.values()):
        raise ValueError(f"The answers differ: {answers}; nothing is measured.")
    if first[0] == first[1]:
        raise ValueError(f"Two videos get the same answer: {first}; nothing is measured.")


def measure_size(name: str, chosen: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Measure the ways whose names begin with any of `chosen`, for one size of the model; yield rows.

    Raises:
        ValueError: no way has such a name, or answers are wrong.
    """
    # With some other seeds, random weights answer each video alike.
    torch.manual_seed(7)
    plan = PLANS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        all_ways = ways_of(name, folder)
        starts = {key: start for key, start in all_ways.items() if key.startswith(tuple(chosen))}
        if not starts:
            raise ValueError(f"ways is {chosen}; each must be how one of these begins: {', '.join(all_ways)}.")
        clips = NewClips(folder, *plan.clip)
        takes_turns = name not in models.WITHOUT_WEIGHTS
        groups = [starts] if takes_turns else [{key: start} for key, start in starts.items()]
        for group in groups:
            try:
                yield from _measure_group(group, clips, plan, rounds)
            except torch.OutOfMemoryError as error:
                print(f"{', '.join(group)}: {error}", flush=True)


def _measure_group(group: dict[str, Start], clips: NewClips, plan: Plan, rounds: int) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        ways = {key: stack.enter_context(start()) for key, start in group.items()}
        with_same_weights = {key: way for key, way in ways.items() if key == OURS or isinstance(way, Transformers)}
        if len(with_same_weights) > 1:
            check_answers(with_same_weights, clips, plan.tokens)
        yield from measure(ways, clips, plan, rounds)


def has_torchvision() -> bool:
    """Say whether vLLM can load LLaVA-NeXT-Video, which needs torchvision."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        # A torchvision that does not fit this torch raises errors of any kind.
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=PLANS, default="7B", help="shape of the model")
    parser.add_argument("--ways", nargs="*", default=[], metavar="TEXT", help="only the ways whose names begin so")
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder for throughput_SIZE.jsonl")
    args = parser.parse_args()
    models.check_device(args.size)
    harness.use_all_cores()
    name = "_".join([args.size, *args.ways]).replace(" ", "_")
    path = args.output / f"throughput_{name}.jsonl"
    path.unlink(missing_ok=True)
    try:
        for row in measure_size(args.size, args.ways or [""], args.rounds):
            harness.append_rows(path, [row])
            print(f"{row['case']:<36}{row['way']:<30}{row['metric']:<20}{row['p50']:>10.4g} {row['unit']}", flush=True)
    except ValueError as error:
        sys.exit(str(error))
    print(path)


if __name__ == "__main__":
    main()
