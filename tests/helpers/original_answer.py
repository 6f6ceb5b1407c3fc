"""What the original answers about images and videos, and the comparison of an engine's answer with it."""

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image

from helpers.asking import Answer, original_prompt
from helpers.clips import decode_all
from original.model import PLACEHOLDER, OriginalVideoLlava
from original.pixels import original_image, original_video

STEPS = 8
# What rounding pixels to 8 bits does to a small random model.
TOLERANCE = 6e-3


def reference_ids(checkpoint, prompt: str) -> list[int]:
    """Tokenise by SentencePiece itself, piece by piece."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    ids = [model.bos_id()]
    for index, piece in enumerate(prompt.split("<media>")):
        ids += [PLACEHOLDER] * (index > 0) + model.encode(piece)
    return ids


def pixels_of(medium: Image.Image | bytes) -> torch.Tensor:
    if isinstance(medium, Image.Image):
        return original_image(np.asarray(medium), 56)
    frames = decode_all(medium)
    return original_video(frames[np.linspace(0, len(frames) - 1, 8, dtype=int)], 56)


def reference_answer(checkpoint, pixels: list[torch.Tensor], question: str, **breakages) -> Answer:
    ids = reference_ids(checkpoint, original_prompt("<media>" * len(pixels), question))
    return OriginalVideoLlava.from_folder(checkpoint, **breakages).generate(ids, pixels, STEPS)


def assert_same(ours: Answer, reference: Answer) -> None:
    assert ours[0] == reference[0]
    assert ours[1] == pytest.approx(reference[1], abs=TOLERANCE)
