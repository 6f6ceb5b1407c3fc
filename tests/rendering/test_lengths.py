"""A prompt that is too long: the sentence says what takes how many tokens, and what the limit is."""

import re

import pytest

from vllm_videollava.rendering.lengths import check_length

PER_ITEM = {"image": 256, "video": 2056}
TOO_LONG = {
    "two videos": (
        ({"video": 2}, 319),
        {},
        "The prompt has 4431 tokens: 2 videos take 4112 and text takes 319; "
        "the limit is 4096 (max_model_len), answer included.",
    ),
    "both": (
        ({"image": 1, "video": 2}, 40),
        {},
        "The prompt has 4408 tokens: 1 image takes 256, 2 videos take 4112 and text takes 40; "
        "the limit is 4096 (max_model_len), answer included.",
    ),
    "no room for an answer": (
        ({"image": 15, "video": 0}, 256),
        {},
        "The prompt has 4096 tokens: 15 images take 3840 and text takes 256; "
        "the limit is 4096 (max_model_len), answer included.",
    ),
    "text not known": (
        ({"image": 1, "video": 2}, 0),
        {},
        "1 image takes 256 and 2 videos take 4112 tokens; the limit is 4096 (max_model_len), answer included.",
    ),
    "text only": (({}, 5000), {}, "The prompt has 5000 tokens; the limit is 4096 (max_model_len), answer included."),
    "text at least": (
        ({"video": 1}, 3000),
        {"at_least": True},
        "The prompt has at least 5056 tokens: 1 video takes 2056 and text takes at least 3000; "
        "the limit is 4096 (max_model_len), answer included.",
    ),
    "max_tokens": (
        ({"video": 1}, 60),
        {"num_output_tokens": 2000},
        "The prompt has 2116 tokens: 1 video takes 2056 and text takes 60; "
        "the limit is 4096 (max_model_len), of which max_tokens reserves 2000 for the answer.",
    ),
}


@pytest.mark.parametrize(("prompt", "options", "sentence"), TOO_LONG.values(), ids=TOO_LONG)
def test_what_is_too_long_is_refused(prompt, options, sentence):
    counts, num_text_tokens = prompt
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_length(counts, PER_ITEM, num_text_tokens, 4096, **options)


def test_what_fits_is_taken():
    check_length({"image": 15}, PER_ITEM, 255, 4096)
    check_length({"video": 1}, PER_ITEM, 0, 4096)
    check_length({}, PER_ITEM, 4095, 4096)
    check_length({"video": 1}, PER_ITEM, 40, 4096, num_output_tokens=2000)
