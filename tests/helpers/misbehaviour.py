"""Misbehaving decoders, for workers to run."""

import ctypes
import json
import os
import resource
import signal
import socket
import time
from pathlib import Path

import numpy as np

from vllm_videollava.decoding.errors import MediaError


def echo(file) -> np.ndarray:
    return np.frombuffer(file.read(), np.uint8)[None]


def work_for(file, seconds: float) -> np.ndarray:
    """Take some time, and tell which process did."""
    time.sleep(seconds)
    return np.frombuffer(os.getpid().to_bytes(8, "big"), np.uint8)


def work_hard(file, seconds: float = 1000, threads: int = 1) -> np.ndarray:
    """Take processor time, of one thread whatever is allowed."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    return np.array([threads], np.uint8)


def count_threads(file, threads: int) -> np.ndarray:
    return np.array([threads], np.uint8)


def report(file) -> np.ndarray:
    """Tell what this process may do, in JSON."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    report = {
        "environment": sorted(os.environ),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "no_new_privileges": int(status["NoNewPrivs"]),
    }
    return np.frombuffer(json.dumps(report).encode().ljust(4096, b"\0"), np.uint8)


def lie(file, how: str, pid_file: Path):
    """Answer with something else than the array `[1, 3]` that is expected, and never return."""
    pid_file.write_text(str(os.getpid()))
    server = socket.socket(fileno=0)
    memory = os.memfd_create("lie")
    os.truncate(memory, {"larger": 1 << 40, "smaller": 2}.get(how, 3))
    descriptors = {"no_array": [], "a_pipe": [os.pipe()[0]], "another_file": [os.open(__file__, os.O_RDONLY)]}
    shape = {"other_shape": [3, 1], "other_type": {"a": 1}}.get(how, [1, 3])
    messages = {"no_json": b"\xff" * 100, "no_outcome": b"[17, null]", "deep": b"[" * 60000}
    answer = messages.get(how, json.dumps([0, shape]).encode())
    socket.send_fds(server, [answer], descriptors.get(how, [memory]))
    time.sleep(60)


def refuse_at_length(file):
    raise MediaError("The video is \x1b[31mdull.\nForged line: " + "x " * 5000)


def kill(file):
    os.kill(os.getpid(), signal.SIGKILL)


def crash(file):
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(file):
    os._exit(0)


def hang_in_c(file):
    """Never return, and keep Python's lock all the while."""
    ctypes.PyDLL(None).sleep(1000)


def stop(file):
    os.kill(os.getpid(), signal.SIGSTOP)


def take_memory(file) -> np.ndarray:
    return np.ones(1 << 32, np.uint8)


def refuse(file):
    raise MediaError("The video is dull.")


def fail(file):
    raise KeyError("inner workings")
