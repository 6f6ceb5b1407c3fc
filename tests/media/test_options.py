"""What may stand in media_io_kwargs and mm_processor_kwargs, and one short sentence about everything else."""

import re

import numpy as np
import pytest

from vllm_videollava.media.options import background_colour, check_media_io_kwargs, check_mm_processor_kwargs

FINE_MEDIA = [
    None,
    {},
    {"video": None, "image": None},
    {"video": {}},
    {"video": {"num_frames": 8, "fps": -1}},
    {"video": {"num_frames": -1, "fps": -1}},
    {"video": {"num_frames": 8}},
    {"video": {"num_frames": 8.0, "fps": -1.0}},
    {"video": {"num_frames": np.int64(8)}},
    {"video": {"num_frames": None, "fps": None, "video_backend": None, "max_duration": None}},
    {"video": {"frame_recovery": False}},
    {"image": {"image_mode": "RGB"}, "video": {"fps": -1}},
    {"image": {"image_mode": None, "rgba_background_color": None}},
    {"image": {"rgba_background_color": [0, 128, 255]}},
    {"image": {"rgba_background_color": (np.uint8(0), 0, 255)}},
]


@pytest.mark.parametrize("kwargs", FINE_MEDIA)
def test_what_asks_for_nothing_or_for_what_is_done_anyway_is_fine(kwargs):
    check_media_io_kwargs(kwargs, 8)


def test_the_number_of_frames_is_the_models():
    check_media_io_kwargs({"video": {"num_frames": 16}}, 16)
    with pytest.raises(ValueError, match="num_frames is 8; this model always uses 16 frames of a video"):
        check_media_io_kwargs({"video": {"num_frames": 8}}, 16)


FRAMES = "this model always uses 8 frames of a video."
DECODER = "this model has its own video decoder."
BYTES = "it must be a list of three whole numbers from 0 to 255."
BAD_MEDIA = {
    "more frames": ({"video": {"num_frames": 16}}, f"media_io_kwargs.video.num_frames is 16; {FRAMES}"),
    "no frames": ({"video": {"num_frames": 0}}, f"media_io_kwargs.video.num_frames is 0; {FRAMES}"),
    "a rate": ({"video": {"fps": 2}}, f"media_io_kwargs.video.fps is 2; {FRAMES}"),
    "both": ({"video": {"num_frames": 8, "fps": 0.5}}, f"media_io_kwargs.video.fps is 0.5; {FRAMES}"),
    "frames as text": ({"video": {"num_frames": "8"}}, f"media_io_kwargs.video.num_frames is '8'; {FRAMES}"),
    "true is not a number": ({"video": {"num_frames": True}}, f"media_io_kwargs.video.num_frames is True; {FRAMES}"),
    "not a number": ({"video": {"fps": float("nan")}}, f"media_io_kwargs.video.fps is nan; {FRAMES}"),
    "infinite": ({"video": {"fps": float("inf")}}, f"media_io_kwargs.video.fps is inf; {FRAMES}"),
    "nested": ({"video": {"num_frames": [[8]]}}, f"media_io_kwargs.video.num_frames is [[...]]; {FRAMES}"),
    "an array": (
        {"video": {"num_frames": np.array([8, 8])}},
        f"media_io_kwargs.video.num_frames is an object of type 'ndarray'; {FRAMES}",
    ),
    "duration": ({"video": {"max_duration": 60}}, f"media_io_kwargs.video.max_duration is 60; {FRAMES}"),
    "decoder": ({"video": {"video_backend": "opencv"}}, f"media_io_kwargs.video.video_backend is 'opencv'; {DECODER}"),
    "device": ({"video": {"device": "cuda"}}, f"media_io_kwargs.video.device is 'cuda'; {DECODER}"),
    "recovery": ({"video": {"frame_recovery": True}}, f"media_io_kwargs.video.frame_recovery is True; {DECODER}"),
    "no recovery": ({"video": {"frame_recovery": 0}}, f"media_io_kwargs.video.frame_recovery is 0; {DECODER}"),
    "times": (
        {"video": {"frames_indices": [0, 4]}},
        "media_io_kwargs.video.frames_indices is [0, 4]; this model does not use the times of frames.",
    ),
    "unknown": (
        {"video": {"nframes": 8}},
        "media_io_kwargs.video has the unknown key 'nframes'.",
    ),
    "unknown null": ({"video": {"x": None}}, "media_io_kwargs.video has the unknown key 'x'."),
    "key that is not text": ({"video": {8: 8}}, "media_io_kwargs.video has the unknown key 8."),
    "the connector's own": (
        {"video_llava": {"image_size": 112}},
        "media_io_kwargs has the unknown key 'video_llava'; the known keys are 'image' and 'video'.",
    ),
    "audio": ({"audio": {}}, "media_io_kwargs has the unknown key 'audio'; the known keys are 'image' and 'video'."),
    "flat": (
        {"num_frames": 8},
        "media_io_kwargs has the unknown key 'num_frames'; the known keys are 'image' and 'video'.",
    ),
    "a list": ([["video", 1]], "media_io_kwargs is [[...]]; it must map options to values."),
    "text": ("video", "media_io_kwargs is 'video'; it must map options to values."),
    "false": (False, "media_io_kwargs is False; it must map options to values."),
    "a number": ({"video": 8}, "media_io_kwargs.video is 8; it must map options to values."),
    "grey": (
        {"image": {"image_mode": "L"}},
        "media_io_kwargs.image.image_mode is 'L'; this model always uses RGB images.",
    ),
    "image option": (
        {"image": {"fps": -1}},
        "media_io_kwargs.image has the unknown key 'fps'; the known keys are 'image_mode' and 'rgba_background_color'.",
    ),
    "a word": (
        {"image": {"rgba_background_color": "white"}},
        f"media_io_kwargs.image.rgba_background_color is 'white'; {BYTES}",
    ),
    "too bright": (
        {"image": {"rgba_background_color": [0, 0, 256]}},
        f"media_io_kwargs.image.rgba_background_color is [0, 0, 256]; {BYTES}",
    ),
    "too few": (
        {"image": {"rgba_background_color": [0, 0]}},
        f"media_io_kwargs.image.rgba_background_color is [0, 0]; {BYTES}",
    ),
    "shares": (
        {"image": {"rgba_background_color": [1.0, 0.5, 0]}},
        f"media_io_kwargs.image.rgba_background_color is [1.0, 0.5, 0]; {BYTES}",
    ),
    "truths": (
        {"image": {"rgba_background_color": [True, 0, 0]}},
        f"media_io_kwargs.image.rgba_background_color is [True, 0, 0]; {BYTES}",
    ),
    "nested colour": (
        {"image": {"rgba_background_color": [[0], [0], [0]]}},
        f"media_io_kwargs.image.rgba_background_color is [[...], [...], [...]]; {BYTES}",
    ),
}


@pytest.mark.parametrize(("kwargs", "sentence"), BAD_MEDIA.values(), ids=BAD_MEDIA)
def test_another_media_option_gets_a_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_media_io_kwargs(kwargs, 8)


def test_the_background_colour():
    assert background_colour({"image": {"rgba_background_color": [0, 128, 255]}, "video": {}}) == (0, 128, 255)
    for kwargs in (None, {}, {"image": None}, {"image": {}}, {"video": {"fps": -1}}):
        assert background_colour(kwargs) is None


@pytest.mark.parametrize(
    "kwargs", [None, {}, {"image_aspect_ratio": "pad"}, {"image_aspect_ratio": None}, {"device": "cpu"}]
)
def test_processor_options(kwargs):
    check_mm_processor_kwargs(kwargs)


UNKNOWN = ("images", "videos", "self", "text", "return_tensors", "images_kwargs", "foo", "image_aspect_ration", "", 1)
BAD_PROCESSING = {
    "another ratio": (
        {"image_aspect_ratio": "fill"},
        "mm_processor_kwargs.image_aspect_ratio is 'fill'; it must be 'pad' or null.",
    ),
    "true": (
        {"image_aspect_ratio": True},
        "mm_processor_kwargs.image_aspect_ratio is True; it must be 'pad' or null.",
    ),
    "a list": (
        {"image_aspect_ratio": ["pad"]},
        "mm_processor_kwargs.image_aspect_ratio is ['pad']; it must be 'pad' or null.",
    ),
    "device": ({"device": "cuda:0"}, "mm_processor_kwargs.device is 'cuda:0'; it must be 'cpu' or null."),
    "not a mapping": ("pad", "mm_processor_kwargs is 'pad'; it must map options to values."),
    **{
        f"unknown {name!r}": (
            {name: []},
            f"mm_processor_kwargs has the unknown key {name!r}; the known keys are 'image_aspect_ratio' and 'device'.",
        )
        for name in UNKNOWN
    },
}


@pytest.mark.parametrize(("kwargs", "sentence"), BAD_PROCESSING.values(), ids=BAD_PROCESSING)
def test_another_processor_option_gets_a_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_mm_processor_kwargs(kwargs)


DEEP: list = []
for _ in range(500):
    DEEP = [DEEP] * 6
HARMFUL = ["x" * 1_000_000, "8\nWARNING 11-25 forged\x1b[31m line\u2028", "\ud800", 10**5000, DEEP, {"y" * 10**6: DEEP}]
PLACES = {
    "media": lambda value: check_media_io_kwargs(value, 8),
    "modality": lambda value: check_media_io_kwargs({"video": value}, 8),
    "frames": lambda value: check_media_io_kwargs({"video": {"num_frames": value}}, 8),
    "colour": lambda value: check_media_io_kwargs({"image": {"rgba_background_color": value}}, 8),
    "processing": check_mm_processor_kwargs,
    "ratio": lambda value: check_mm_processor_kwargs({"image_aspect_ratio": value}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", HARMFUL, ids=["long", "lines", "surrogate", "digits", "deep", "long key"])
def test_no_value_makes_a_long_sentence_or_a_second_line(place, value):
    with pytest.raises(ValueError, match=r"\.$") as error:
        PLACES[place](value)
    assert_short(str(error.value))


@pytest.mark.parametrize("key", HARMFUL[:4], ids=["long", "lines", "surrogate", "digits"])
def test_no_key_makes_a_long_sentence_or_a_second_line(key):
    with pytest.raises(ValueError, match=r"has the unknown key .*; the known keys are 'image' and 'video'") as error:
        check_media_io_kwargs({key: {}}, 8)
    assert_short(str(error.value))


def assert_short(sentence: str) -> None:
    assert len(sentence) < 400
    assert sentence.isascii()
    assert sentence.isprintable()
