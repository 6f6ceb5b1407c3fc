"""Checks `media_io_kwargs` and `mm_processor_kwargs`, set by flags for all requests or by a request for itself."""

from collections.abc import Collection, Mapping
from numbers import Integral, Number
from typing import Any

from vllm_videollava.decoding.errors import shorten

BACKGROUND = "rgba_background_color"

# Options of vLLM's video loaders (0.29 to 0.33). They choose frames, decode them, or add the metadata that a data URL
# of type video/jpeg lacks.
_CHOOSING = (
    *("max_duration", "min_frames", "max_frames", "max_fps"),
    *("frame_sample_mode", "overflow_strategy", "temporal_patch_size", "do_sample_frames"),
)
_DECODING = (
    *("video_backend", "backend", "device", "hw_decoders", "pool_size", "timeout_sec"),
    *("num_ffmpeg_threads", "seek_mode", "max_width", "max_height"),
)
_DESCRIBING = ("frames_indices", "total_num_frames", "duration")

# The one value that each option may have besides null. vLLM sets `device` from its flag --mm-processor-device.
_PROCESSOR_OPTIONS = {"image_aspect_ratio": "pad", "device": "cpu"}


def check_media_io_kwargs(kwargs: object, num_frames: int) -> None:
    """Check options for loading media; a value may request nothing (null, vLLM's -1) or what is done anyway.

    Args:
        kwargs: `{"image": {...}, "video": {...}}`, or None.
        num_frames: number of frames that the model takes from a video.

    Raises:
        ValueError: an option is unknown, or requests something that this model cannot do.
    """
    modalities = _mapping("media_io_kwargs", kwargs, ("image", "video"))
    image_mode = {"image_mode": (("RGB",), "this model always uses RGB images")}
    image = _mapping("media_io_kwargs.image", modalities.get("image"), (*image_mode, BACKGROUND))
    _check_values("media_io_kwargs.image", image, image_mode)
    background_colour(modalities)
    video_options = _video_options(num_frames)
    video = _mapping("media_io_kwargs.video", modalities.get("video"), video_options)
    _check_values("media_io_kwargs.video", video, video_options)


def background_colour(kwargs: Mapping[str, Mapping[str, object] | None] | None) -> tuple[int, int, int] | None:
    """Return the colour that `media_io_kwargs` puts behind transparent images, or None.

    Raises:
        ValueError: the colour is not a list of three whole numbers from 0 to 255.
    """
    colour = ((kwargs or {}).get("image") or {}).get(BACKGROUND)
    if colour is None:
        return None
    if not isinstance(colour, (list, tuple)) or len(colour) != 3 or not all(map(_is_byte, colour)):
        raise ValueError(
            f"media_io_kwargs.image.{BACKGROUND} is {shorten(colour)}; "
            "it must be a list of three whole numbers from 0 to 255."
        )
    red, green, blue = map(int, colour)
    return red, green, blue


def check_mm_processor_kwargs(kwargs: object) -> None:
    """Check options for processing media.

    Args:
        kwargs: a mapping from options to null or their one value (`_PROCESSOR_OPTIONS`), or None.

    Raises:
        ValueError: an option or its value is unknown.
    """
    options = _mapping("mm_processor_kwargs", kwargs, _PROCESSOR_OPTIONS)
    for name, value in options.items():
        if not _is_one_of(value, (_PROCESSOR_OPTIONS[name],)):
            only = repr(_PROCESSOR_OPTIONS[name])
            raise ValueError(f"mm_processor_kwargs.{name} is {shorten(value)}; it must be {only} or null.")


def _video_options(num_frames: int) -> dict[str, tuple[tuple, str]]:
    """Return, for each option, the values that it may have besides null, and the reason why it may have no others."""
    frames = f"this model always uses {num_frames} frames of a video"
    decoder = "this model has its own video decoder"
    return {
        "num_frames": ((num_frames, -1), frames),
        "fps": ((-1,), frames),
        "frame_recovery": ((False,), decoder),
        **dict.fromkeys(_CHOOSING, ((), frames)),
        **dict.fromkeys(_DECODING, ((), decoder)),
        **dict.fromkeys(_DESCRIBING, ((), "this model does not use the times of frames")),
    }


def _mapping(path: str, value: object, known: Collection[str]) -> Mapping[str, Any]:
    """Return `value` if it is a mapping without unknown keys, or an empty mapping for None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} is {shorten(value)}; it must map options to values.")
    for key in value:
        if key not in known:
            all_known = f"; the known keys are {' and '.join(map(repr, known))}" if len(known) == 2 else ""
            raise ValueError(f"{path} has the unknown key {shorten(key)}{all_known}.")
    return value


def _check_values(path: str, values: Mapping[str, object], options: Mapping[str, tuple[tuple, str]]) -> None:
    for name, (accepted, reason) in options.items():
        if not _is_one_of(values.get(name), accepted):
            raise ValueError(f"{path}.{name} is {shorten(values[name])}; {reason}.")


def _is_one_of(value: object, accepted: tuple) -> bool:
    if value is None:
        return True
    # True must not count as 1. Other types, such as arrays, may not compare to a single bool.
    return isinstance(value, (Number, str)) and any(
        isinstance(value, bool) == isinstance(one, bool) and value == one for one in accepted
    )


def _is_byte(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value <= 255
