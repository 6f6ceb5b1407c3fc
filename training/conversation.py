"""Packs questions and answers as token ids: one prompt up to its media, then every question with its answer."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch

from vllm_videollava.text.conversation import SYSTEM_PROMPT
from vllm_videollava.tiny.questions import Question

PADDING, PREFIX = -2, -1


class Packed(NamedTuple):
    """A batch; each row holds the questions about one prompt's media.

    Attributes:
        ids: `[B, L]`, the token ids of questions and answers.
        labels: `[B, L]`, the id of the next token, or -100 where it is not learnt.
        positions: `[B, L]`, counted from 0 at each question's first token.
        groups: `[B, L]`, the number of the token's question, or `PADDING`.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    groups: torch.Tensor


def sentences(questions: Iterable[Question]) -> Iterator[str]:
    """Yield whole conversations, on which the tokenizer is trained."""
    for _, text, answer in questions:
        yield f"{SYSTEM_PROMPT} USER: {text} ASSISTANT: {answer}"


def encode_prefix(tokenizer: sentencepiece.SentencePieceProcessor) -> list[int]:
    """Return the ids of the prompt up to its media."""
    return [tokenizer.bos_id(), *tokenizer.encode(f"{SYSTEM_PROMPT} USER: ")]


def pack(questions: list[list[Question]], tokenizer: sentencepiece.SentencePieceProcessor) -> Packed:
    """Encode the questions about each sample of a batch, one after another."""
    rows = [[_encode(question, tokenizer) for question in about_one] for about_one in questions]
    length = max(sum(len(ids) for ids, _ in row) for row in rows)
    ids, positions = np.zeros((2, len(rows), length), np.int64)
    labels, groups = np.full_like(ids, -100), np.full_like(ids, PADDING)
    for index, row in enumerate(rows):
        start = 0
        for group, (tokens, num_prompt) in enumerate(row):
            end = start + len(tokens)
            ids[index, start:end], groups[index, start:end] = tokens, group
            positions[index, start:end] = np.arange(len(tokens))
            labels[index, start + num_prompt - 1 : end - 1] = tokens[num_prompt:]
            start = end
    return Packed(*map(torch.from_numpy, (ids, labels, positions, groups)))


def _encode(question: Question, tokenizer: sentencepiece.SentencePieceProcessor) -> tuple[list[int], int]:
    prompt = tokenizer.encode(f"\n{question.text} ASSISTANT:")
    return [*prompt, *tokenizer.encode(question.answer), tokenizer.eos_id()], len(prompt)


def attention_bias(groups: torch.Tensor, num_prefix: int) -> torch.Tensor:
    """Return the bias on the scores of each pair of tokens, 0 or minus infinity, `[B, 1, L, L]`."""
    prefix = torch.full((len(groups), num_prefix), PREFIX, device=groups.device)
    groups = torch.cat([prefix, groups], dim=1)
    same = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == PREFIX)
    allowed = same & torch.ones(same.shape[1:], dtype=torch.bool, device=groups.device).tril()
    bias = torch.zeros(allowed.shape, dtype=torch.bfloat16, device=groups.device)
    return bias.masked_fill_(~allowed, -torch.inf)[:, None]
