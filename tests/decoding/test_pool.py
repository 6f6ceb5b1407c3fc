"""Whatever a decoder does, it costs one request and one sentence; and when this process ends, so do its workers."""

import functools
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import ROOT, TESTS
from helpers.processes import wait_until
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.pool import SMALL_BYTES, DecodePool, DecoderUnavailableError, Job, Lane
from vllm_videollava.decoding.settings import Settings

LARGE = bytes(SMALL_BYTES)


@pytest.fixture
def make_pool(monkeypatch):
    """Make pools whose workers can import `helpers.misbehaviour`."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    pools = []

    def make(**settings: int) -> DecodePool:
        pools.append(DecodePool(Settings(**settings)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def job(function: str, data: bytes = b"abc", shape: tuple[int, ...] = (1, 3), kind: str = "video", **arguments) -> Job:
    return Job(kind, f"helpers.misbehaviour:{function}", data, arguments, shape)


def run(pool: DecodePool, function: str, *args, **arguments) -> np.ndarray:
    return pool.submit(job(function, *args, **arguments)).result(30)


def work_for(pool: DecodePool, seconds: float, data: bytes = b"", kind: str = "video") -> Future[np.ndarray]:
    return pool.submit(job("work_for", data, (8,), kind, seconds=seconds))


def count_descriptors(pool: DecodePool) -> int:
    """Count this process's descriptors when the pool's spare worker has started."""
    wait_until(lambda: not pool._starting)
    return len(os.listdir("/proc/self/fd"))


def pid_of(answer: np.ndarray) -> int:
    return int.from_bytes(answer.tobytes(), "big")


@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
def test_data_go_there_and_back(make_pool, size):
    data = np.random.default_rng(0).bytes(size)
    assert run(make_pool(), "echo", data, (1, size)).tobytes() == data


OTHER_FORMAT = "try another format, for example H.264 in MP4."
HARM = {
    "crash": f"The video (3 bytes) cannot be decoded, because its decoder crashed; {OTHER_FORMAT}",
    "leave": f"The video (3 bytes) cannot be decoded, because its decoder crashed; {OTHER_FORMAT}",
    "hang_in_c": "The video (3 bytes) takes too long to decode; the limit is 1 (VIDEO_LLAVA_DECODE_SECONDS).",
    "stop": "The video (3 bytes) takes too long to decode; the limit is 1 (VIDEO_LLAVA_DECODE_SECONDS).",
    "take_memory": (
        "The video (3 bytes) takes too much memory to decode; the limit is 512 (VIDEO_LLAVA_DECODE_MEMORY_MB)."
    ),
    "refuse": "The video is dull.",
    "fail": f"The video (3 bytes) cannot be decoded; {OTHER_FORMAT}",
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_costs_one_request(make_pool, harm, monkeypatch):
    monkeypatch.setattr("vllm_videollava.decoding.pool.SECONDS_OF_GRACE", 1)
    pool = make_pool(decode_workers=1, decode_seconds=1, decode_memory_mb=512)
    for _ in range(2):
        with pytest.raises(MediaError) as error:
            run(pool, harm)
        assert str(error.value) == HARM[harm]
        assert run(pool, "echo").tobytes() == b"abc"


def test_a_worker_is_used_again_and_replaced_when_it_dies(make_pool):
    pool = make_pool(decode_workers=1)
    first, second = (pid_of(work_for(pool, 0).result()) for _ in range(2))
    assert first == second
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: Path(f"/proc/{first}/status").read_text().split("State:")[1].split()[0] == "Z")
    assert pid_of(work_for(pool, 0).result()) != first


def test_requests_are_decoded_at_the_same_time(make_pool):
    pool = make_pool(decode_workers=3)
    for future in [pool.submit(job("echo", LARGE, (1, len(LARGE)))) for _ in range(3)]:
        future.result()
    start = time.monotonic()
    answers = [future.result() for future in [work_for(pool, 1, LARGE) for _ in range(6)]]
    assert 2 <= time.monotonic() - start < 3
    assert len({pid_of(answer) for answer in answers}) == 3


def test_a_lone_clip_may_use_all_cores_and_many_share_them(make_pool, monkeypatch):
    monkeypatch.setattr("vllm_videollava.decoding.pool.cpu_count", lambda: 4)
    pool = make_pool()

    def count_threads() -> int:
        threaded = Job("video", "helpers.misbehaviour:count_threads", LARGE, {}, (1,), threaded=True)
        return int(pool.submit(threaded).result()[0])

    assert count_threads() == 4
    slow = [work_for(pool, 2, LARGE) for _ in range(3)]
    wait_until(lambda: all(future.running() for future in slow))
    assert count_threads() == 1


def test_processors_are_divided_among_servers(monkeypatch):
    monkeypatch.setattr("vllm_videollava.decoding.pool.cpu_count", lambda: 8)
    for num_sharers, num_workers in ((1, 8), (2, 4), (3, 2), (16, 1)):
        assert DecodePool(Settings(), num_sharers)._most_running[Lane.LARGE_VIDEO] == num_workers


@pytest.mark.parametrize("num_workers", [1, 2])
def test_small_videos_and_images_pass_large_videos(make_pool, num_workers):
    pool = make_pool(decode_workers=num_workers)
    slow = [work_for(pool, 10, LARGE) for _ in range(4 * num_workers)]
    slow += [work_for(pool, 10) for _ in range(4 * num_workers)]
    wait_until(lambda: len(pool._busy) > num_workers and not pool._starting)
    work_for(pool, 0, LARGE, "image").result()
    assert sum(future.done() for future in slow) == 0
    # Large videos have all that is theirs, and small ones some.
    assert sum(future.running() for future in slow[: 4 * num_workers]) == num_workers
    assert sum(future.running() for future in slow[4 * num_workers :]) >= 1


def test_no_more_decoders_are_kept_than_may_decode(make_pool):
    """Each of three media starts a decoder of its own here, while a spare one is being started."""
    pool = make_pool(decode_workers=1)
    slow = [work_for(pool, 2, LARGE), work_for(pool, 2), work_for(pool, 2, kind="image")]
    for future in slow:
        future.result()
    wait_until(lambda: not pool._busy and not pool._starting)
    assert len(pool._idle) == 3


@pytest.mark.parametrize("kind", ["video", "image"])
def test_large_videos_have_their_turn(make_pool, kind):
    pool = make_pool(decode_workers=2)
    others = [work_for(pool, 0.2, kind=kind) for _ in range(40)]
    work_for(pool, 0, LARGE).result()
    assert sum(future.done() for future in others) < 15


def test_images_alone_use_every_worker(make_pool):
    pool = make_pool(decode_workers=4)
    slow = [work_for(pool, 1, kind="image") for _ in range(6)]
    wait_until(lambda: all(future.running() for future in slow))


def test_what_waits_is_dropped_when_nobody_waits_for_it(make_pool):
    pool = make_pool(decode_workers=1)
    first, second, third = (work_for(pool, 1, LARGE) for _ in range(3))
    wait_until(first.running)
    assert second.cancel()
    first.result()
    start = time.monotonic()
    third.result()
    assert time.monotonic() - start < 1.9
    assert not any(pool._queued.values())


def test_closing_drops_all_at_once(make_pool):
    pool = make_pool(decode_workers=1)
    waiting = [work_for(pool, 20, LARGE) for _ in range(3)]
    wait_until(waiting[0].running)
    start = time.monotonic()
    pool.close()
    for future in waiting:
        assert isinstance(future.exception(5), DecoderUnavailableError)
    assert time.monotonic() - start < 2


def test_what_the_last_user_leaves_is_dropped(make_pool):
    """Several engines in one process share a pool, which outlives them."""
    pool = make_pool(decode_workers=1)
    users = [job("echo"), job("echo")]
    for user in users:
        pool.add_user(user)
    waiting = [work_for(pool, 20, LARGE) for _ in range(2)]
    wait_until(waiting[0].running)
    pool.remove_user(users[0])
    assert not any(future.done() for future in waiting)
    pool.remove_user(users[1])
    for future in waiting:
        assert isinstance(future.exception(5), DecoderUnavailableError)
        assert "shutting down" in str(future.exception())
    assert run(pool, "echo").tobytes() == b"abc"


def test_whether_a_clip_is_refused_does_not_depend_on_others(make_pool, monkeypatch):
    """Alone it might have two threads, and each of them its time."""
    monkeypatch.setattr("vllm_videollava.decoding.pool.cpu_count", lambda: 2)
    pool = make_pool(decode_seconds=2)

    def work(seconds: float) -> int:
        clip = Job("video", "helpers.misbehaviour:work_hard", b"abc", {"seconds": seconds}, (1,), threaded=True)
        return int(pool.submit(clip).result()[0])

    assert work(3) == 2
    slow = work_for(pool, 5)
    wait_until(slow.running)
    assert work(3) == 1
    with pytest.raises(MediaError, match="takes too long to decode"):
        work(5)


def test_without_threads_a_job_fails_and_leaves_its_place(make_pool, monkeypatch):
    pool = make_pool(decode_workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", functools.partial(raise_error, RuntimeError("can't start new thread")))
        for _ in range(3):
            with pytest.raises(
                DecoderUnavailableError, match=r"^The server cannot start another thread to decode; try again later\.$"
            ):
                run(pool, "echo")
    assert run(pool, "echo").tobytes() == b"abc"


def test_a_refused_medium_is_not_kept(make_pool):
    """Not until Python looks for circles of garbage, which it seldom does in a server."""
    pool = make_pool()
    gc.collect()
    gc.disable()
    try:
        for function in ("refuse", "crash"):
            refused = job(function)
            alive = weakref.ref(refused)
            with pytest.raises(MediaError):
                pool.submit(refused).result()
            del refused
            wait_until(lambda: alive() is None)  # noqa: B023
    finally:
        gc.enable()


def test_no_descriptors_for_a_request(make_pool, monkeypatch):
    pool = make_pool()
    run(pool, "echo")
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", functools.partial(raise_error, OSError(24, "Too many open files")))
        with pytest.raises(DecoderUnavailableError, match=r"^The video was not decoded \(Too many open files\); try"):
            run(pool, "echo")
    assert run(pool, "echo").tobytes() == b"abc"


def test_time_is_what_a_decoder_works(make_pool):
    """A decoder that has to wait for a processor is not ended for that; one that works all the time is."""
    pool = make_pool(decode_workers=1, decode_seconds=1)
    assert len(work_for(pool, 2).result()) == 8
    start = time.monotonic()
    with pytest.raises(MediaError, match="takes too long to decode; the limit is 1 "):
        run(pool, "work_hard")
    assert time.monotonic() - start < 5.5


LIES = [
    "other_shape",
    "larger",
    "smaller",
    "no_array",
    "no_json",
    "no_outcome",
    "a_pipe",
    "another_file",
    "other_type",
    "deep",
]


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_was_not_asked_for_ends_the_worker(make_pool, lie, tmp_path):
    """Who has decoded a hostile file may say anything."""
    pool = make_pool(decode_workers=1)
    run(pool, "echo")
    descriptors = count_descriptors(pool)
    with pytest.raises(MediaError, match=r"^The video \(3 bytes\) cannot be decoded, because its decoder crashed; "):
        run(pool, "lie", how=lie, pid_file=tmp_path / "pid")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
    assert run(pool, "echo").tobytes() == b"abc"
    assert count_descriptors(pool) == descriptors


def test_a_refusal_is_one_printable_line(make_pool):
    with pytest.raises(MediaError) as error:
        run(make_pool(), "refuse_at_length")
    sentence = str(error.value)
    assert sentence.startswith("The video is ?[31mdull. Forged line: ")
    assert sentence.isprintable()
    assert len(sentence) <= 500


def test_a_worker_that_the_system_ends_is_not_the_clients_fault(make_pool):
    pool = make_pool()
    with pytest.raises(
        DecoderUnavailableError, match=r"^The video \(3 bytes\) was not decoded, because the system killed"
    ):
        run(pool, "kill")
    assert run(pool, "echo").tobytes() == b"abc"


@pytest.mark.parametrize("broken", ["no python", "no package", "no PyAV", "no descriptor"])
def test_a_worker_that_cannot_start_is_not_the_clients_fault(make_pool, broken, monkeypatch, tmp_path):
    pool = make_pool()
    monkeypatch.setattr("vllm_videollava.decoding.pool.SECONDS_TO_START", 20)
    if broken == "no python":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    elif broken == "no package":
        # In the worker, another package of the name is found first.
        package = tmp_path / "vllm_videollava"
        (package / "decoding").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "decoding" / "__init__.py").touch()
        (package / "decoding" / "worker.py").write_text("raise SystemExit(3)")
        monkeypatch.syspath_prepend(tmp_path)
    elif broken == "no PyAV":
        (tmp_path / "av.py").write_text("raise ImportError('a broken library')")
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setattr(subprocess, "Popen", functools.partial(raise_error, OSError(24, "Too many open files")))
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with pytest.raises(
            DecoderUnavailableError, match=r"^A decoding process (cannot be started|ended while it started)"
        ):
            run(pool, "echo")
    # What another test has left may go meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def raise_error(error: Exception, *args, **kwargs):
    raise error


def test_a_worker_finds_the_package_where_this_process_does(tmp_path):
    """As in a notebook: the package is on sys.path only, and not in the environment."""
    script = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from vllm_videollava.media.io import check_decoding
        check_decoding()
    """
    (tmp_path / "vllm_videollava").symlink_to(ROOT / "vllm_videollava")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_what_a_worker_may_do(make_pool, monkeypatch):
    """Neither secrets nor core files, no new privileges, and the kernel's first choice when memory ends."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("LD_PRELOAD", "")
    report = json.loads(run(make_pool(), "report", shape=(4096,)).tobytes().rstrip(b"\0"))
    assert not {"HF_TOKEN", "VLLM_API_KEY", "LD_PRELOAD", "HOME"} & set(report["environment"])
    assert report["core"] == [0, 0]
    assert report["oom_score_adj"] == 1000
    assert report["no_new_privileges"] == 1


def test_a_hard_limit_of_memory_is_kept(tmp_path):
    """Of a process whose memory somebody has limited for good, workers live within that limit."""
    script = """if True:
        import resource
        from vllm_videollava.media.io import check_decoding
        resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
        check_decoding()
    """
    unprivileged = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"] if os.geteuid() == 0 else []
    subprocess.run([*unprivileged, sys.executable, "-c", script], check=True)


def test_descriptors_are_closed(make_pool):
    pool = make_pool(decode_workers=1)
    run(pool, "echo")
    before = count_descriptors(pool)
    for function in ("echo", "refuse", "fail"):
        for _ in range(5):
            with suppress(MediaError):
                run(pool, function)
    assert count_descriptors(pool) == before


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
        import sys, time
        from vllm_videollava.decoding.pool import Job, shared_pool
        pool = shared_pool()
        worked = pool.submit(Job("video", "helpers.misbehaviour:work_for", b"", {{"seconds": 0}}, (8,))).result()
        print(int.from_bytes(worked.tobytes(), "big"), flush=True)
        if {busy}:
            pool.submit(Job("video", "helpers.misbehaviour:hang_in_c", bytes(1 << 20), {{}}, (8,)))
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
    assert "vllm_videollava.decoding.worker" not in errors
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
