"""Reads the settings for media from the environment. README.md has the same table."""

import functools
import importlib.util
import os
from dataclasses import Field, dataclass, fields

DECODERS = ("pyav", "decord")


@dataclass(frozen=True)
class Settings:
    """The decoder and its limits. The variable VIDEO_LLAVA_ plus a field's name in capitals sets the field.

    Attributes:
        decoder: what decodes videos, pyav or decord.
        decode_workers: number of videos of 1 MiB or more that are decoded at the same time; 0 means one per processor.
        decode_seconds: seconds of processor time; a video may take as many on each processor, 8 processors at most.
        decode_memory_mb: MiB of memory that decoding one image or video may take.
        decoded_cache_mb: MiB of decoded videos that are kept for later requests about them; 0 means none.
        max_media_mb: MiB of the largest file; for base64, its decoded size.
        max_frame_pixels: pixels of the largest frame of a video.
        max_frames: frames of the longest video.
        max_video_seconds: duration of the longest video.
    """

    decoder: str = "pyav"
    decode_workers: int = 0
    decode_seconds: int = 30
    decode_memory_mb: int = 2048
    decoded_cache_mb: int = 256
    max_media_mb: int = 256
    max_frame_pixels: int = 8192 * 4320
    max_frames: int = 216_000
    max_video_seconds: int = 3600


def variable(field: str) -> str:
    """Return the name of the environment variable that sets a field."""
    return f"VIDEO_LLAVA_{field.upper()}"


@functools.cache
def read_settings() -> Settings:
    """Read the environment; a process does so only once.

    Raises:
        ValueError: a variable has a value that is not supported, or names a decoder that is not installed.
    """
    return Settings(**{field.name: _read(field) for field in fields(Settings)})


def _read(field: Field) -> int | str:
    text = os.environ.get(variable(field.name), str(field.default))
    return _read_decoder(text) if field.name == "decoder" else _read_number(field, text)


def _read_decoder(text: str) -> str:
    if text not in DECODERS:
        raise ValueError(f"{variable('decoder')} is {text!r}; it must be {' or '.join(DECODERS)}.")
    if text == "decord" and importlib.util.find_spec("decord") is None:
        raise ValueError(
            f"{variable('decoder')} is 'decord', which is not installed; run pip install 'vllm-videollava[decord]'."
        )
    return text


def _read_number(field: Field, text: str) -> int:
    least = 0 if field.default == 0 or field.name == "decoded_cache_mb" else 1
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{variable(field.name)} is {text!r}; it must be a whole number of at least {least}.")
    return int(text)
