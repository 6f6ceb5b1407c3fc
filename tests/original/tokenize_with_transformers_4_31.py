"""Make the expected ids of tests/data/tokenizer: the original's prompt ids, by transformers 4.31's slow tokenizer.

Run in an environment of its own (Python 3.11, transformers==4.31.0, sentencepiece, protobuf<4, numpy<2):

    python tests/original/tokenize_with_transformers_4_31.py
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "data" / "tokenizer"
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
PROMPTS = [
    f"{SYSTEM} USER: hi ASSISTANT:",
    f"{SYSTEM} USER: <image>\nWhat does the image show? ASSISTANT:",
    f"{SYSTEM} USER: <image><image>\nWhy? ASSISTANT: A dog.</s>USER: And then? ASSISTANT:",
    "",
    " ",
    "\n",
    "  two  spaces ",
    "tab\tnew\n\nline",
    "\x00\x01 bell\x07",
    "</s>",
    "</s>USER",
    "</s> USER",
    "a</s></s>b<s>c<unk>d",
    "héllo wörld 日本語 🎉 �",
    "▁literal ▁ b",
    "<0xFE> <0xFF> <0x00>",
    "<image>",
    "a<image> b<image>\n<image>",
]
PARTS = ["USER", ":", " ", "  ", "<image>", "</s>", "\n", "dog", "Ä", "日", "▁", "<unk>", "7", "a", "video", "\t", "."]
PLACEHOLDER = -200


def prompts() -> list[str]:
    draw = random.Random(0)
    return PROMPTS + ["".join(draw.choices(PARTS, k=draw.randint(2, 9))) for _ in range(300)]


def original_ids(tokenizer, prompt: str) -> list[int]:
    """Return the ids with `PLACEHOLDER` for each "<image>", as the original's `tokenizer_image_token`."""
    ids = [tokenizer.bos_token_id]
    for index, piece in enumerate(prompt.split("<image>")):
        ids += [PLACEHOLDER] * (index > 0) + tokenizer(piece).input_ids[1:]
    return ids


def main() -> None:
    from transformers import LlamaTokenizer

    expected = {}
    for legacy in (False, True):
        tokenizer = LlamaTokenizer.from_pretrained(FOLDER, legacy=legacy)
        expected[f"legacy={legacy}"] = [[prompt, original_ids(tokenizer, prompt)] for prompt in prompts()]
    (FOLDER / "ids.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
