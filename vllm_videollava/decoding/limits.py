"""Every limit on images and videos, each with the sentence of its error."""

import math

from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.settings import Settings, variable

MAX_SIDE_RATIO = 64
MAX_IMAGE_PIXELS = "VLLM_MAX_IMAGE_PIXELS"
"""vLLM's own variable for images."""

_MOST_CHARACTERS_OF_BASE64 = 5
"""Per byte: 3 bytes take 4 characters, each of them may be escaped as %2F, and layout takes some more."""


def max_file_bytes(settings: Settings) -> int:
    """Return the largest number of bytes that a file may have."""
    return settings.max_media_mb << 20


def check_file_size(kind: str, num_bytes: int, settings: Settings) -> None:
    """Refuse a file that is empty or too large.

    Args:
        kind: "image" or "video".

    Raises:
        MediaError: the file is empty or too large.
    """
    if not num_bytes:
        raise MediaError(f"The {kind} is empty.")
    if num_bytes > max_file_bytes(settings):
        raise MediaError(f"The {kind} has {num_bytes} bytes; {_file_limit(settings)}.")


def check_base64_size(kind: str, num_characters: int, settings: Settings) -> None:
    """Refuse base64 that is too long for any file of allowed size, before decoding multiplies its memory.

    Raises:
        MediaError: the base64 has too many characters.
    """
    if num_characters > _MOST_CHARACTERS_OF_BASE64 * max_file_bytes(settings):
        raise MediaError(
            f"The base64 of the {kind} has {num_characters} characters, too many; {_file_limit(settings)}."
        )


def check_sides(medium: str, height: int, width: int) -> None:
    """Refuse a picture that is too narrow: it would be huge once padded to a square, or scaled before the crop.

    Raises:
        MediaError: one side is more than 64 times the other.
    """
    if max(height, width) > MAX_SIDE_RATIO * min(height, width):
        raise MediaError(
            f"{medium} of {width}x{height} pixels is too narrow; "
            f"the longer side may be at most {MAX_SIDE_RATIO} times the shorter."
        )


def check_image_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image that is too narrow or has more than `max_pixels` pixels; 0 means no limit.

    Raises:
        MediaError: the image is too narrow or has too many pixels.
    """
    check_sides("The image", height, width)
    if 0 < max_pixels < width * height:
        what = f"{width}x{height} = {width * height} pixels"
        raise MediaError(f"The image has {what}; the limit is {max_pixels} ({MAX_IMAGE_PIXELS}).")


def check_frame_size(height: int, width: int, settings: Settings) -> None:
    """Refuse a video whose frames are too large or too narrow.

    Raises:
        MediaError: the frames are too large or too narrow.
    """
    num_pixels = width * height
    if num_pixels > settings.max_frame_pixels:
        raise _beyond(f"The video has frames of {width}x{height} = {num_pixels} pixels", "max_frame_pixels", settings)
    check_sides("The video", height, width)


def check_frame_count(count: int, settings: Settings) -> None:
    """Refuse a video with too many frames.

    Raises:
        MediaError: the video has too many frames.
    """
    if count > settings.max_frames:
        raise _beyond(f"The video has at least {count} frames", "max_frames", settings)


def check_duration(seconds: float, settings: Settings) -> None:
    """Refuse a video that is too long.

    Raises:
        MediaError: the video is too long.
    """
    if seconds > settings.max_video_seconds:
        raise _beyond(f"The video lasts longer than {math.ceil(seconds) - 1} s", "max_video_seconds", settings)


def takes_too_much_memory(medium: str, settings: Settings) -> MediaError:
    return _beyond(f"{medium} takes too much memory to decode", "decode_memory_mb", settings)


def takes_too_long(medium: str, settings: Settings) -> MediaError:
    return _beyond(f"{medium} takes too long to decode", "decode_seconds", settings)


def _beyond(what: str, field: str, settings: Settings) -> MediaError:
    return MediaError(f"{what}; the limit is {getattr(settings, field)} ({variable(field)}).")


def _file_limit(settings: Settings) -> str:
    return f"the limit is {max_file_bytes(settings)} bytes ({variable('max_media_mb')})"
