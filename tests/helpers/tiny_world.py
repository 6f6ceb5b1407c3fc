"""Clips and images of the tiny world, and how to ask a server about them."""

from pathlib import Path

from openai import OpenAI

from vllm_videollava.client import messages
from vllm_videollava.tiny.generator import Example, write_examples


def draw(folder: Path) -> list[Example]:
    """Draw five clips and three images; the tiny checkpoint in float32 answers every question about them rightly."""
    return write_examples(folder, 5, 3, seed=2)


def about(examples: list[Example], *kinds: str) -> Example:
    """Return the first question about media of these kinds, in this order."""
    return next(example for example in examples if example.kinds == list(kinds))


def question(example: Example) -> list[dict]:
    """Return the messages of a question about local files."""
    media = zip(example.kinds, example.media, strict=True)
    parts = [messages.media_part(kind, messages.file_url(path)) for kind, path in media]
    return messages.question(example.question.text, parts)


def connect(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, conversation: list[dict], **options) -> str:
    options = {"model": "tiny", "temperature": 0, "max_tokens": 48, **options}
    return client.chat.completions.create(messages=conversation, **options).choices[0].message.content.strip()
