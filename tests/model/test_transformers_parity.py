"""Checkpoints in transformers' format answer as its `VideoLlavaForConditionalGeneration`, within 1e-3."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaTokenizer, VideoLlavaForConditionalGeneration, VideoLlavaImageProcessor

from helpers.asking import Answer, ask, clip, original_prompt, picture
from helpers.checkpoints import IMAGE_SIZE, NAMES, write_transformers_checkpoint
from helpers.clips import decode_all
from helpers.transformers_answer import greedy_logits

STEPS = 8
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=NAMES)
def folder(request, checkpoint, tmp_path_factory):
    return write_transformers_checkpoint(tmp_path_factory.mktemp("hf"), checkpoint, names=request.param)


@pytest.fixture(scope="module")
def llm(folder):
    from vllm import LLM

    llm = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=1024)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def reference(checkpoint, tmp_path_factory):
    # Written by transformers and read by it again: the names are its own affair.
    folder = write_transformers_checkpoint(tmp_path_factory.mktemp("reference"), checkpoint)
    return VideoLlavaForConditionalGeneration.from_pretrained(folder).eval(), LlamaTokenizer.from_pretrained(folder)


CASES = {
    "text": ([], "What is a dog?"),
    "image": ([picture(1)], "What does the image show?"),
    "video": ([clip(2)], "What does the clip show?"),
    "two images": ([picture(3), picture(4, 150, 60)], "Which?"),
    "video and image": ([clip(5), picture(6)], "Is the dog in both?"),
}


@pytest.mark.parametrize(("media", "question"), CASES.values(), ids=CASES)
def test_answer_is_that_of_transformers(llm, reference, media, question):
    ours = ask(llm, media, question, STEPS)
    expected = reference_answer(*reference, media, question)
    assert ours[0] == expected[0]
    assert ours[1] == pytest.approx(expected[1], abs=TOLERANCE)


@torch.inference_mode()
def reference_answer(model, tokenizer, media, question) -> Answer:
    patches = (IMAGE_SIZE // 14) ** 2
    placeholders = "".join(
        "<image>" * patches if isinstance(item, Image.Image) else "<video>" * (8 * (patches + 1)) for item in media
    )
    prompt = original_prompt(placeholders, question)
    inputs = {"input_ids": tokenizer(prompt, return_tensors="pt").input_ids}
    if images := [item for item in media if isinstance(item, Image.Image)]:
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        processor = VideoLlavaImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
        inputs["pixel_values_images"] = processor(images, return_tensors="pt")["pixel_values_images"]
    if videos := [item for item in media if isinstance(item, bytes)]:
        inputs["pixel_values_videos"] = torch.stack([pillow_video_pixels(item) for item in videos])
    logits = greedy_logits(model, STEPS, **inputs).log_softmax(-1)
    return logits.argmax(-1).tolist(), logits.max(-1).values.tolist()


def pillow_video_pixels(data: bytes) -> torch.Tensor:
    """transformers' video processor needs torchvision; these are its steps with Pillow."""
    frames = decode_all(data)
    frames = frames[np.linspace(0, len(frames) - 1, 8, dtype=int)]
    resized = []
    for frame in frames:
        image = Image.fromarray(frame)
        scale = IMAGE_SIZE / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - IMAGE_SIZE) // 2, (image.height - IMAGE_SIZE) // 2
        resized.append(np.asarray(image)[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE])
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (pixels - mean) / std
