"""Settings from the environment, for media. README.md has the same table."""

import os
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """What decoding may take. Each field is set by VIDEO_LLAVA_ and its name in capitals, a whole number.

    Attributes:
        decode_workers: processes that decode; 0 means one for each core.
        decode_seconds: longest time that one image or video may take to decode.
        decode_memory_mb: MiB of memory that decoding one image or video may take.
        decoded_cache_mb: MiB of decoded videos that are kept for the next request; 0 means none.
        max_media_mb: MiB of the largest file, base64 decoded.
        max_frame_pixels: pixels of the largest frame of a video.
        max_frames: frames of the longest video.
        max_video_seconds: duration of the longest video.
    """

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


def read_settings() -> Settings:
    """Read the environment.

    Raises:
        ValueError: a variable is no whole number, or less than it may be.
    """
    values = {field.name: _read(field.name, field.default) for field in fields(Settings)}
    return Settings(**values)


def _read(field: str, default: int) -> int:
    text = os.environ.get(variable(field), str(default))
    least = 0 if default == 0 or field == "decoded_cache_mb" else 1
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{variable(field)} is {text!r}; a whole number from {least} on is supported.")
    return int(text)
