"""Memory of a running server over thousands of videos, one after the other and from 32 clients at once.

    python -m benchmarks.soak

Writes benchmarks/results/soak.jsonl. Ends with status 1 if any memory has
grown by more than 5 % from the second quarter of the videos to the last.
Needs neither network nor GPU: it serves the tiny checkpoint.
"""

import argparse
import json
import os
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.harness import row, write_rows
from vllm_videollava import tiny_checkpoint
from vllm_videollava.client import messages
from vllm_videollava.client.server import local_server
from vllm_videollava.tiny.drawing import write_video
from vllm_videollava.tiny.world import random_clip_scene

NUM_CLIENTS = 32
# Small caches are full soon; they grow on purpose.
FLAGS = ("--enforce-eager", "--dtype=float32", "--mm-processor-cache-gb=0.01", "--disable-uvicorn-access-log")
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
    "VIDEO_LLAVA_DECODED_CACHE_MB": "4",
}
GROWTH_ALLOWED = 1.05
EVERY = 10


def main() -> None:
    args = parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = write_video(random_clip_scene(np.random.default_rng(0)), folder / "clip.mp4").read_bytes()
        with local_server(tiny_checkpoint(), folder / "log.txt", *FLAGS, **ENVIRONMENT) as server:
            for case, num_clients in (("one after the other", 1), (f"{NUM_CLIENTS} clients", NUM_CLIENTS)):
                rows += soak(case, server.process.pid, server.url, clip, args.videos, num_clients)
    print(f"Written to {write_rows('soak', rows)}")
    sys.exit(not all(is_flat(rows)))


def soak(case: str, pid: int, url: str, clip: bytes, num_videos: int, num_clients: int) -> list[dict]:
    """Ask about `num_videos` clips, each of them new to all caches, and return rows of memory in each quarter."""
    samples: list[dict[str, float]] = []

    def ask_and_look(number: int) -> None:
        ask(url, clip + b"\x00\x00\x00\x14free" + f"{num_clients:4}{number:8}".encode())
        if number % EVERY == 0:
            samples.append(resident_memory(pid))

    with ThreadPoolExecutor(num_clients) as clients:
        list(clients.map(ask_and_look, range(num_videos)))
    rows = []
    for process in samples[0]:
        for quarter in range(4):
            part = samples[len(samples) * quarter // 4 : len(samples) * (quarter + 1) // 4]
            values = [sample[process] for sample in part]
            rows.append(
                row(f"{num_videos} videos, {case}", process, f"resident memory, quarter {quarter + 1}", "MiB", values)
            )
            print(rows[-1], flush=True)
    return rows


def ask(url: str, clip: bytes) -> None:
    part = messages.media_part("video", messages.data_url(clip, "video/mp4"))
    body = {"messages": messages.question("What happens?", [part]), "max_tokens": 1}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        json.load(response)


def resident_memory(pid: int) -> dict[str, float]:
    """Return MiB that the server's process holds, and all its decoding workers together."""
    memory = {"server": _resident(pid), "workers": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"vllm_videollava.decoding.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                memory["workers"] += _resident(int(child))
    return memory


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def is_flat(rows: list[dict]) -> list[bool]:
    """Say for each process and case whether memory has stopped growing in the second quarter."""
    quarters: dict[tuple[str, str], list[float]] = {}
    for result in rows:
        quarters.setdefault((result["case"], result["way"]), []).append(result["p50"])
    return [last <= GROWTH_ALLOWED * second for _, second, _, last in quarters.values()]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--videos", type=int, default=2000, metavar="N", help="number of videos, for each of the two ways"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
