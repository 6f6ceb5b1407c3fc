"""Asking an engine about images and clips, and the prompt that the original would make of it."""

import base64

from PIL import Image

from helpers.clips import encode_clip, smooth_frames

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
MAX_MODEL_LEN = 600
"""Of the fixture `renderer`."""
Medium = Image.Image | bytes
Answer = tuple[list[int], list[float]]
"""Token ids and their log-probabilities."""


def picture(seed: int, height: int = 90, width: int = 130) -> Image.Image:
    return Image.fromarray(smooth_frames(1, height, width, seed)[0])


def clip(seed: int, num_frames: int = 20) -> bytes:
    return encode_clip(smooth_frames(num_frames, 96, 144, seed))


def original_prompt(placeholders: str, question: str) -> str:
    newline = "\n" if placeholders else ""
    return f"{SYSTEM} USER: {placeholders}{newline}{question} ASSISTANT:"


def ask(llm, media: list[Medium], question: str, steps: int, **options) -> Answer:
    """Ask by `LLM.chat`, media first, and answer greedily in `steps` tokens."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=steps, logprobs=1, ignore_eos=True)
    outputs = llm.chat([{"role": "user", "content": parts(media, question)}], params, use_tqdm=False, **options)
    return answer_of(outputs[0])


def parts(media: list[Medium], question: str) -> list[dict]:
    """Return the parts of a message, media first."""
    return [*map(_part, media), {"type": "text", "text": question}]


def answer_of(request_output) -> Answer:
    """Return the answer in vLLM's output for a request with `logprobs=1`."""
    output = request_output.outputs[0]
    logprobs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    return list(output.token_ids), logprobs


def _part(medium: Medium) -> dict:
    if isinstance(medium, Image.Image):
        return {"type": "image_pil", "image_pil": medium}
    url = f"data:video/mp4;base64,{base64.b64encode(medium).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}
