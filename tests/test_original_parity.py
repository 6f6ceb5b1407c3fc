"""The engine answers as the original does: same greedy tokens, log-probabilities within 6e-3, end to end."""

import base64
import json

import numpy as np
import pytest
import torch
from clips import decode_all, encode_clip, smooth_frames
from PIL import Image
from reference.model import PLACEHOLDER, OriginalVideoLlava, quick_gelu
from reference.pixels import original_image, original_video
from safetensors.torch import load_file

STEPS = 8
# What rounding pixels to 8 bits does to a small random model.
TOLERANCE = 6e-3
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@pytest.fixture(scope="module")
def llm(checkpoint):
    from vllm import LLM

    llm = LLM(str(checkpoint), dtype="float32", enforce_eager=True, max_model_len=1024)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def make_reference(checkpoint, weights):
    def make(**breakages) -> OriginalVideoLlava:
        config = json.loads((checkpoint / "config.json").read_text())
        towers = [
            json.loads((checkpoint / config[f"mm_{kind}_tower"] / "config.json").read_text())["vision_config"]
            for kind in ("image", "video")
        ]
        return OriginalVideoLlava(weights, config, *towers, **breakages)

    return make


def picture(seed: int, height: int = 90, width: int = 130) -> Image.Image:
    return Image.fromarray(smooth_frames(1, height, width, seed)[0])


def clip(seed: int, num_frames: int = 20) -> bytes:
    return encode_clip(smooth_frames(num_frames, 96, 144, seed))


def image_part(image: Image.Image) -> dict:
    return {"type": "image_pil", "image_pil": image}


def video_part(data: bytes) -> dict:
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(data).decode()}"}}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def ask(llm, messages, **kwargs):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=STEPS, logprobs=1, ignore_eos=True)
    output = llm.chat(messages, params, use_tqdm=False, **kwargs)[0].outputs[0]
    return list(output.token_ids), [
        step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)
    ]


def reference_ids(checkpoint, prompt: str) -> list[int]:
    """Tokenise by SentencePiece itself, piece by piece; special tokens are not cut out."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    ids = [model.bos_id()]
    for index, piece in enumerate(prompt.split("<media>")):
        ids += [PLACEHOLDER] * (index > 0) + model.encode(piece)
    return ids


def image_pixels(image: Image.Image) -> torch.Tensor:
    return original_image(np.asarray(image), 56)


def video_pixels(data: bytes) -> torch.Tensor:
    frames = decode_all(data)
    return original_video(frames[np.linspace(0, len(frames) - 1, 8, dtype=int)], 56)


def assert_same(ours, reference) -> None:
    assert ours[0] == reference[0]
    assert ours[1] == pytest.approx(reference[1], abs=TOLERANCE)


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
def test_answer_is_the_originals(llm, checkpoint, make_reference, media, question):
    parts = [video_part(item) if isinstance(item, bytes) else image_part(item) for item in media]
    newline = "\n" if media else ""
    prompt = f"{SYSTEM} USER: {'<media>' * len(media)}{newline}{question} ASSISTANT:"
    pixels = [video_pixels(item) if isinstance(item, bytes) else image_pixels(item) for item in media]
    reference = make_reference().generate(reference_ids(checkpoint, prompt), pixels, STEPS)
    assert_same(ask(llm, [{"role": "user", "content": [*parts, text_part(question)]}]), reference)


def test_padded_image_is_the_originals(llm, checkpoint, make_reference):
    image = picture(12, 80, 140)
    square = Image.new("RGB", (140, 140), (122, 116, 104))
    square.paste(image, (0, 30))
    prompt = f"{SYSTEM} USER: <media>\nWhat? ASSISTANT:"
    reference = make_reference().generate(reference_ids(checkpoint, prompt), [image_pixels(square)], STEPS)
    messages = [{"role": "user", "content": [image_part(image), text_part("What?")]}]
    assert_same(ask(llm, messages, mm_processor_kwargs={"image_aspect_ratio": "pad"}), reference)


BREAKAGES = {
    "no temporal attention": ({"temporal_attention": False}, lambda pixels: pixels),
    "exchanged frames": ({}, lambda pixels: pixels[[0, 1, 2, 4, 3, 5, 6, 7]]),
    "wrong gelu": ({"gelu": quick_gelu}, lambda pixels: pixels),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_the_comparison_notices(llm, checkpoint, make_reference, breakage):
    arguments, change_frames = BREAKAGES[breakage]
    data = clip(3)
    prompt = f"{SYSTEM} USER: <media>\nWhat does the clip show? ASSISTANT:"
    broken = make_reference(**arguments).generate(
        reference_ids(checkpoint, prompt), [change_frames(video_pixels(data))], STEPS
    )
    ours = ask(llm, [{"role": "user", "content": [video_part(data), text_part("What does the clip show?")]}])
    with pytest.raises(AssertionError):
        assert_same(ours, broken)
