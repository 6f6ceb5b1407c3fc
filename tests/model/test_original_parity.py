"""The engine answers as the original does: same greedy tokens, log-probabilities within 6e-3, end to end."""

import pytest
from PIL import Image

from helpers.asking import ask, clip, picture
from helpers.original_answer import STEPS, assert_same, pixels_of, reference_answer
from original.model import quick_gelu


@pytest.fixture(scope="module")
def llm(checkpoint):
    from vllm import LLM

    llm = LLM(str(checkpoint), dtype="float32", enforce_eager=True, max_model_len=1024)
    yield llm
    llm.llm_engine.engine_core.shutdown()


CASES = {
    "text": ([], "What is a dog?"),
    "image": ([picture(1)], "What does the image show?"),
    "portrait image": ([picture(2, 160, 70)], "What?"),
    "video": ([clip(3)], "What does the clip show?"),
    "short video": ([clip(4, num_frames=3)], "Why?"),
    "one frame": ([clip(5, num_frames=1)], "Why?"),
    "two images": ([picture(6), picture(7)], "Which of the two is a dog?"),
    "video and image": ([clip(8), picture(9)], "Is the dog in both?"),
    "two videos": ([clip(10), clip(11)], "Which?"),
}


@pytest.mark.parametrize(("media", "question"), CASES.values(), ids=CASES)
def test_answer_is_the_originals(llm, checkpoint, media, question):
    reference = reference_answer(checkpoint, [pixels_of(medium) for medium in media], question)
    assert_same(ask(llm, media, question, STEPS), reference)


def test_padded_image_is_the_originals(llm, checkpoint):
    image = picture(12, 80, 140)
    square = Image.new("RGB", (140, 140), (122, 116, 104))
    square.paste(image, (0, 30))
    ours = ask(llm, [image], "What?", STEPS, mm_processor_kwargs={"image_aspect_ratio": "pad"})
    assert_same(ours, reference_answer(checkpoint, [pixels_of(square)], "What?"))


EXCHANGED = [0, 1, 2, 4, 3, 5, 6, 7]
BREAKAGES = {
    "no temporal attention": ({"temporal_attention": False}, list(range(8))),
    "exchanged frames": ({}, EXCHANGED),
    "wrong gelu": ({"gelu": quick_gelu}, list(range(8))),
}


@pytest.mark.parametrize(("breakages", "order"), BREAKAGES.values(), ids=BREAKAGES)
def test_the_comparison_notices(llm, checkpoint, breakages, order):
    video, question = clip(3), "What does the clip show?"
    broken = reference_answer(checkpoint, [pixels_of(video)[order]], question, **breakages)
    with pytest.raises(AssertionError):
        assert_same(ask(llm, [video], question, STEPS), broken)
