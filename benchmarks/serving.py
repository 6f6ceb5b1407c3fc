"""A server under load: new videos, one video again and again, and images, from one client to many.

    python -m benchmarks.serving --size tiny

vLLM's own `bench serve` asks, with streaming, and measures. Every answer has a fixed number of tokens. Clients
send URLs of local files. Each client asks its next question when its last one is answered, or questions come
at random times at a given rate. Goodput counts the answers whose first token came within a second, and the
others within 50 ms on average. With a GPU, rows also have the share of time in which a kernel ran, by NVIDIA's
counter. A case is not written if a question is not answered in full. Rows go to
benchmarks/results/serving_SIZE.jsonl, or to the folder that --output names.
"""

import argparse
import asyncio
import contextlib
import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import harness, models
from benchmarks.clips import NewClips
from vllm_videollava.client import messages
from vllm_videollava.client.server import local_server
from vllm_videollava.tiny.drawing import write_image
from vllm_videollava.tiny.world import random_image_scene

OURS = "this package"
TAILS = (95, 99)
# Milliseconds to the first token, and on average for each other token.
GOOD = {"ttft": 1000.0, "tpot": 50.0}
GREEDY = {"temperature": 0}
QUESTIONS = {"video": "What does the video show?", "image": "What does the image show?"}
# Allows for what is left to compile.
WARM_UP = 3


class Load(NamedTuple):
    """What is asked of one size of the model.

    Attributes:
        clients: numbers of clients at once.
        rates: questions a second.
        seconds: how long questions come at each rate.
        turns: questions of each client.
        tokens: tokens of each answer.
        clip: height in pixels and duration in seconds of a video.
        flags: flags of `vllm serve`.
    """

    clients: tuple[int, ...]
    rates: tuple[float, ...]
    seconds: float
    turns: int
    tokens: int
    clip: tuple[int, int]
    flags: tuple[str, ...]


_ON_CPU = Load((1, 4), (1.0,), 20, 10, 16, (240, 2), ("--dtype=float32", "--enforce-eager"))
LOADS = {
    "tiny": _ON_CPU,
    "middle": _ON_CPU,
    "7B": Load((1, 8, 64), (4.0, 8.0), 15, 4, 128, (720, 10), ("--dtype=bfloat16",)),
}
Media = Callable[[int], list[Path]]


class NewImages:
    """Images, each given out once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._given, self._random = folder, 0, np.random.default_rng(0)

    def take(self, count: int) -> list[Path]:
        self._given += count
        numbers = range(self._given - count, self._given)
        return [write_image(random_image_scene(self._random), self._folder / f"{number}.png") for number in numbers]


class BusyGpu:
    """Samples the share of time in which the GPU is busy; there are no samples without one."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._stop = threading.Event()

    def __enter__(self) -> "BusyGpu":
        self._thread = threading.Thread(target=self._sample)
        if torch.cuda.is_available():
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self) -> None:
        self.shares.append(torch.cuda.utilization() / 100)
        while not self._stop.wait(0.2):
            self.shares.append(torch.cuda.utilization() / 100)


class Client:
    """Asks one server about media."""

    def __init__(self, url: str, model: Path, load: Load) -> None:
        self._url, self._model, self._load = url, str(model), load

    def ask(self, kind: str, files: list[Path], clients: int | None = None, rate: float = float("inf")) -> dict:
        """Ask one question about each file; return what `vllm bench serve` measured.

        Raises:
            RuntimeError: a question was not answered in full.
        """
        from vllm.benchmarks.datasets import SampleRequest
        from vllm.benchmarks.serve import TaskType, benchmark

        requests = [
            SampleRequest(QUESTIONS[kind], 0, self._load.tokens, messages.media_part(kind, messages.file_url(file)))
            for file in files
        ]
        # It prints a report of its own.
        with contextlib.redirect_stdout(io.StringIO()):
            result = asyncio.run(
                benchmark(
                    task_type=TaskType.GENERATION,
                    endpoint_type="openai-chat",
                    api_url=f"{self._url}/v1/chat/completions",
                    base_url=self._url,
                    model_id=self._model,
                    model_name=self._model,
                    tokenizer=None,
                    input_requests=requests,
                    logprobs=None,
                    request_rate=rate,
                    burstiness=1.0,
                    disable_tqdm=True,
                    num_warmups=0,
                    profile=False,
                    selected_percentile_metrics=[],
                    selected_percentiles=[50.0],
                    ignore_eos=True,
                    goodput_config_dict=GOOD,
                    max_concurrency=clients,
                    lora_modules=None,
                    extra_headers=None,
                    extra_body=GREEDY,
                    ready_check_timeout_sec=0,
                )
            )
        if result["output_lens"] != [self._load.tokens] * len(files):
            errors = sorted(set(filter(None, result["errors"])))
            raise RuntimeError(f"Not every question was answered in full: {result['output_lens']}, {errors}")
        return result


def rows_of(case: str, result: dict[str, Any], busy: list[float]) -> Iterator[dict[str, Any]]:
    """Turn the result of one case into rows."""
    pairs = zip(result["latencies"], result["ttfts"], result["output_lens"], strict=True)
    per_token = [(latency - first) / (tokens - 1) for latency, first, tokens in pairs]
    yield harness.row(case, OURS, "time to first token", "s", result["ttfts"], TAILS)
    yield harness.row(case, OURS, "time per other token", "s", per_token, TAILS)
    yield harness.row(case, OURS, "answers", "1/s", [result["request_throughput"]])
    yield harness.row(case, OURS, "tokens", "1/s", [result["output_throughput"]])
    yield harness.row(case, OURS, "goodput", "1/s", [result["request_goodput"]])
    if busy:
        # Each sample is the share of a moment; their median would hide idle moments.
        yield harness.row(case, OURS, "GPU busy", "share", [sum(busy) / len(busy)])


def measure(client: Client, load: Load, new: dict[str, Media], seconds: float) -> Iterator[dict[str, Any]]:
    """Measure every case, and begin no further one after `seconds`; yield rows."""
    begin = time.monotonic()
    for kind, take in new.items():
        client.ask(kind, take(WARM_UP * max(load.clients)), max(load.clients))
    for case, kind, make, clients, rate in _cases(load, new):
        if time.monotonic() - begin > seconds:
            print(f"{case}: no time left.", flush=True)
            continue
        files = make()
        try:
            with BusyGpu() as busy:
                result = client.ask(kind, files, clients, rate)
        except RuntimeError as error:
            print(f"{case}: {error}", flush=True)
            continue
        yield from rows_of(case, result, busy.shares)


def _cases(load: Load, new: dict[str, Media]):
    # Most valuable first; the rates are the first to be lost when time runs out.
    for clients in sorted(load.clients, reverse=True):
        count, of_clients = load.turns * clients, f"{clients} client{'s' if clients > 1 else ''}"
        for kind, take in new.items():
            yield f"new {kind}s, {of_clients}", kind, lambda take=take, count=count: take(count), clients, float("inf")
        again = new["video"](1)
        yield f"one video, {of_clients}", "video", lambda again=again, count=count: again * count, clients, float("inf")
    for rate in load.rates:
        count = round(rate * load.seconds)
        take = new["video"]
        yield f"new videos, {rate:g} a second", "video", lambda count=count, take=take: take(count), None, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=LOADS, default="7B", help="shape of the model")
    parser.add_argument("--seconds", type=float, default=300, help="time after which no further case begins")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder for serving_SIZE.jsonl")
    args = parser.parse_args()
    models.check_device(args.size)
    begin, load = time.monotonic(), LOADS[args.size]
    harness.use_all_cores()
    path = args.output / f"serving_{args.size}.jsonl"
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        checkpoint, weights = models.write_checkpoint(folder / "video-llava", args.size)
        flags = [*load.flags, "--max-model-len=4096", "--allowed-local-media-path=/", "--disable-uvicorn-access-log"]
        flags += [f"--{name.replace('_', '-')}={value}" for name, value in weights.items()]
        new = {"video": NewClips(folder, *load.clip).take, "image": NewImages(folder).take}
        with local_server(checkpoint, folder / "log.txt", *flags) as server:
            rows = [harness.row("start", OURS, "time", "s", [server.seconds])]
            harness.append_rows(path, rows)
            left = args.seconds - (time.monotonic() - begin)
            for row in measure(Client(server.url, checkpoint, load), load, new, left):
                harness.append_rows(path, [row])
                print(f"{row['case']:<28}{row['metric']:<24}{row['p50']:>10.4g} {row['unit']}", flush=True)
    print(path)


if __name__ == "__main__":
    main()
