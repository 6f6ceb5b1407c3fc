"""Memory of a running server over thousands of videos, one after the other and from 32 clients at once.

    python benchmarks/soak.py

Writes benchmarks/results/soak.jsonl. Ends with status 1 if any memory has
grown by more than 5 % from the second quarter of the videos to the last.
Needs neither network nor GPU: it serves a small random checkpoint.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import row, write_rows

# Before this folder, which has a media.py of its own.
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from demo import free_port, wait_until_healthy
from media import write_clip
from random_checkpoint import write_checkpoint

NUM_CLIENTS = 32
GROWTH_ALLOWED = 1.05
EVERY = 10


def main() -> None:
    args = parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = write_clip(folder / "clip.mp4").read_bytes()
        checkpoint = write_checkpoint(folder / "random-video-llava")
        port = free_port()
        with (folder / "log.txt").open("w") as log:
            server = start_server(checkpoint, port, log)
            try:
                if not wait_until_healthy(port, server):
                    sys.exit("The server did not start.")
                for case, num_clients in (("one after the other", 1), (f"{NUM_CLIENTS} clients", NUM_CLIENTS)):
                    rows += soak(case, server.pid, port, clip, args.videos, num_clients)
            finally:
                server.terminate()
                server.wait()
    print(f"Written to {write_rows('soak', rows)}")
    sys.exit(not all(is_flat(rows)))


def start_server(checkpoint: Path, port: int, log) -> subprocess.Popen:
    """Start a server whose caches are full soon, for they grow on purpose."""
    command = [sys.executable, "-m", "vllm_videollava.cli", "serve", str(checkpoint), "--port", str(port)]
    flags = ["--enforce-eager", "--dtype", "float32", "--mm-processor-cache-gb", "0.01", "--disable-uvicorn-access-log"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "VIDEO_LLAVA_DECODED_CACHE_MB": "4"}
    return subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT, env=environment)


def soak(case: str, pid: int, port: int, clip: bytes, num_videos: int, num_clients: int) -> list[dict]:
    """Ask about `num_videos` clips, each of them new to all caches, and return rows of memory in each quarter."""
    samples: list[dict[str, float]] = []

    def ask_and_look(number: int) -> None:
        ask(port, clip + b"\x00\x00\x00\x14free" + f"{num_clients:4}{number:8}".encode())
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


def ask(port: int, clip: bytes) -> None:
    url = f"data:video/mp4;base64,{base64.b64encode(clip).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What happens?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        json.load(response)


def resident_memory(pid: int) -> dict[str, float]:
    """Return MiB that the server's process holds, and all its decoding workers together."""
    memory = {"server": _resident(pid), "workers": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"decode_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
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
    parser.add_argument("--videos", type=int, default=2000, metavar="N", help="asked about in each of the two ways")
    return parser.parse_args()


if __name__ == "__main__":
    main()
