"""Counts and times of decoding for Prometheus; vLLM's server shows them at /metrics beside its own."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.file_kinds import describe

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WAIT = Histogram(
    "videollava:decode_wait_seconds", "Time that images and videos wait for a decoder.", ["lane"], buckets=_SECONDS
)
_DECODE = Histogram(
    "videollava:decode_seconds",
    "Time that decoding takes, with the start of a decoder if none is idle, by the file's format and the outcome.",
    ["lane", "format", "outcome"],
    buckets=_SECONDS,
)
_BUSY = Gauge("videollava:decoders_busy", "Decoders that are at work.", multiprocess_mode="livesum")
_ENDED = Counter("videollava:decoders_ended", "Decoders that ended at work and are replaced.", ["reason"])
_VIDEOS = Counter(
    "videollava:videos",
    "Videos that were asked for, by where they came from: the cache, a decoder that was at it already, or a new job.",
    ["source"],
)


@contextmanager
def decoding(lane: str, head: bytes, waited: float) -> Iterator[None]:
    """Count the decoding of a medium, which is the block.

    Args:
        lane: the name of its queue.
        head: its first bytes.
        waited: the seconds that it waited.
    """
    _WAIT.labels(lane).observe(waited)
    start, outcome = time.monotonic(), "decoded"
    try:
        with _BUSY.track_inprogress():
            yield
    except MediaError:
        outcome = "refused"
        raise
    except BaseException:
        outcome = "unavailable"
        raise
    finally:
        _DECODE.labels(lane, _format(head), outcome).observe(time.monotonic() - start)


def _format(head: bytes) -> str:
    """Return the name of a file's format, for example "MP4"; there are few, whatever clients send."""
    named = re.search(r"\((.+)\)|(GIF|WebP)", describe(head) or "")
    return named[1] or named[2] if named else "other"


def count_ended_decoder(reason: str) -> None:
    _ENDED.labels(reason).inc()


def count_video(source: str) -> None:
    _VIDEOS.labels(source).inc()
