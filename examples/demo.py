"""Ask a question about a clip through a running OpenAI-compatible server, without network or GPU.

    python examples/demo.py

Writes a small random checkpoint and a clip, serves the one and asks about the
other. What is real is the way from clip to answer; the words are noise.
"""

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from media import write_clip
from openai import OpenAI
from random_checkpoint import write_checkpoint

QUESTION = "Which way does the circle move?"
SECONDS_TO_START = 180


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(folder / "random-video-llava")
        clip = write_clip(folder / "clip.mp4")
        print(
            "No trained checkpoint comes with this package yet: the demo serves a small one with random weights,\n"
            "so the words of its answer are noise. To serve the real one: vllm-videollava serve",
            flush=True,
        )
        port = free_port()
        with (folder / "server.log").open("w+") as log:
            server = start_server(checkpoint, port, log)
            try:
                started = wait_until_healthy(port, server)
                if not started:
                    log.seek(0)
                    sys.exit(f"The server did not start:\n{log.read()[-5000:]}")
                print(f"Server ready after {started:.0f} s on port {port}.", flush=True)
                ask(f"http://127.0.0.1:{port}/v1", clip)
            finally:
                server.terminate()
                server.wait()


def start_server(checkpoint: Path, port: int, log) -> subprocess.Popen:
    command = [sys.executable, "-m", "vllm_videollava.cli", "serve", str(checkpoint), "--port", str(port)]
    # One GiB of cache is plenty on a CPU, and compiling would take longer than the one answer.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    return subprocess.Popen([*command, "--enforce-eager"], stdout=log, stderr=subprocess.STDOUT, env=environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(port: int, server: subprocess.Popen) -> float | None:
    """Return the seconds until the server answered, or None if it never did."""
    start = time.monotonic()
    while server.poll() is None and time.monotonic() - start < SECONDS_TO_START:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return time.monotonic() - start
        except OSError:
            time.sleep(0.5)
    return None


def ask(base_url: str, clip: Path) -> None:
    client = OpenAI(base_url=base_url, api_key="none")
    url = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    start = time.monotonic()
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        max_tokens=32,
        temperature=0,
        stream=True,
    )
    first, answer = None, ""
    for chunk in stream:
        if text := chunk.choices[0].delta.content:
            first = first or time.monotonic() - start
            answer += text
    printable = "".join(character if character.isprintable() else "·" for character in answer)
    print(f"Clip      {clip.name}, 24 frames of a circle that moves from left to right")
    print(f"Question  {QUESTION}")
    print(f"Answer    {printable.strip()}")
    print(f"Times     first token after {first:.2f} s, whole answer after {time.monotonic() - start:.2f} s")


if __name__ == "__main__":
    main()
