"""What a decoder might do wrong, for workers to run."""

import ctypes
import os
import signal
import time

import numpy as np

from vllm_videollava.errors import MediaError


def echo(file) -> np.ndarray:
    return np.frombuffer(file.read(), np.uint8)[None]


def work_for(file, seconds: float) -> np.ndarray:
    """Take some time, and tell which process did."""
    time.sleep(seconds)
    return np.frombuffer(os.getpid().to_bytes(8, "big"), np.uint8)


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
