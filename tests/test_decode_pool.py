"""Whatever a decoder does, it costs one request and one sentence; and when this process ends, so do its workers."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import TESTS, wait_until

from vllm_videollava import decode_pool
from vllm_videollava.decode_pool import DecodePool
from vllm_videollava.envs import Settings
from vllm_videollava.errors import MediaError


@pytest.fixture
def make_pool(monkeypatch):
    """Make pools whose workers can import `misbehaviour`."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    pools = []

    def make(**settings: int) -> DecodePool:
        pools.append(DecodePool(Settings(**settings)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def run(pool: DecodePool, function: str, data: bytes = b"abc", **arguments) -> np.ndarray:
    return pool.run("video", f"misbehaviour:{function}", data, **arguments)


def pid_of(answer: np.ndarray) -> int:
    return int.from_bytes(answer.tobytes(), "big")


@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
def test_data_go_there_and_back(make_pool, size):
    data = np.random.default_rng(0).bytes(size)
    assert run(make_pool(), "echo", data).tobytes() == data


HARM = {
    "crash": "The video (3 bytes) cannot be decoded: its decoder crashed.",
    "leave": "The video (3 bytes) cannot be decoded: its decoder crashed.",
    "hang_in_c": "The video (3 bytes) takes longer to decode than VIDEO_LLAVA_DECODE_SECONDS allows, 1 seconds.",
    "stop": "The video (3 bytes) takes longer to decode than VIDEO_LLAVA_DECODE_SECONDS allows, 1 seconds.",
    "take_memory": "The video (3 bytes) takes more memory to decode than VIDEO_LLAVA_DECODE_MEMORY_MB allows, 512 MiB.",
    "refuse": "The video is dull.",
    "fail": "The video (3 bytes) cannot be decoded.",
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_costs_one_request(make_pool, harm, monkeypatch):
    monkeypatch.setattr(decode_pool, "SECONDS_OF_GRACE", 1)
    pool = make_pool(decode_workers=1, decode_seconds=1, decode_memory_mb=512)
    for _ in range(2):
        with pytest.raises(MediaError) as error:
            run(pool, harm)
        assert str(error.value) == HARM[harm]
        assert run(pool, "echo").tobytes() == b"abc"


def test_a_worker_is_used_again_and_replaced_when_it_dies(make_pool):
    pool = make_pool(decode_workers=1)
    first, second = (pid_of(run(pool, "work_for", seconds=0)) for _ in range(2))
    assert first == second
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: Path(f"/proc/{first}/status").read_text().split("State:")[1].split()[0] == "Z")
    assert pid_of(run(pool, "work_for", seconds=0)) != first


def test_requests_are_decoded_at_the_same_time(make_pool):
    pool = make_pool(decode_workers=3)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: run(pool, "echo"), range(3)))
        start = time.monotonic()
        answers = list(threads.map(lambda _: run(pool, "work_for", seconds=1), range(6)))
        assert 2 <= time.monotonic() - start < 3
    assert len({pid_of(answer) for answer in answers}) == 3


def test_a_lone_clip_may_use_all_cores_and_many_share_them(make_pool, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    pool = make_pool()
    assert pool.threads() == 4
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            threads.submit(run, pool, "work_for", seconds=2)
        wait_until(lambda: pool.threads() == 1)


def test_descriptors_are_closed(make_pool):
    pool = make_pool(decode_workers=1)
    run(pool, "echo")
    before = len(os.listdir("/proc/self/fd"))
    for function in ("echo", "refuse", "fail"):
        for _ in range(5):
            with suppress(MediaError):
                run(pool, function)
    assert len(os.listdir("/proc/self/fd")) == before


ENDS = {
    "normal": "pass",
    "exception": "raise SystemError('on purpose')",
    "killed": "time.sleep(60)",
    "terminated": "time.sleep(60)",
    "interrupted": "time.sleep(60)",
}
SIGNALS = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM, "interrupted": signal.SIGINT}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_behind(end, busy):
    """However a process ends, whether its workers wait or hang, they are gone soon; what they share has no name."""
    script = f"""if True:
        import sys, threading, time
        from vllm_videollava.decode_pool import shared_pool
        pool = shared_pool()
        print(int.from_bytes(pool.run("video", "misbehaviour:work_for", b"", seconds=0).tobytes(), "big"), flush=True)
        if {busy}:
            hang = lambda: pool.run("video", "misbehaviour:hang_in_c", bytes(1 << 20))
            threading.Thread(target=hang, daemon=True).start()
            time.sleep(1)
        print("ready", flush=True)
        {ENDS[end]}
    """
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    worker = int(process.stdout.readline())
    assert process.stdout.readline() == "ready\n"
    if end in SIGNALS:
        # To all processes of the group, as a terminal does.
        os.killpg(process.pid, SIGNALS[end])
    _, errors = process.communicate(timeout=20)
    assert "decode_worker" not in errors
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
