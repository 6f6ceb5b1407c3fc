"""Counts a prompt's tokens, including those of its images and videos, and refuses prompts that are too long."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers import TokenizeParams

from vllm_videollava.media.python_media import count_media
from vllm_videollava.text.conversation import check_placeholders, collapse_placeholders
from vllm_videollava.text.placeholders import PLACEHOLDERS, split_placeholders


class PromptLengths:
    """Checks prompts as they are tokenised.

    Args:
        tokenizer: one of `VideoLlavaTokenizer`'s.
        tokens_per_item: number of tokens that one image or video takes, by modality.
        takes_embeddings: whether embeddings may take the place of images and videos.
    """

    def __init__(self, tokenizer, tokens_per_item: Mapping[str, int], *, takes_embeddings: bool) -> None:
        self._takes_embeddings = takes_embeddings
        self._tokenizer = tokenizer
        self._tokens_per_item = tokens_per_item

    @contextmanager
    def checked(self, prompt: Mapping[str, Any], params: TokenizeParams) -> Iterator[Callable[[Any], Any]]:
        """Yield a function that checks a tokenised prompt and returns it.

        Raises:
            ValueError: the prompt is too long, or has lost an image or a video. This sentence replaces vLLM's own.
        """
        given = dict(prompt)
        try:
            yield lambda tokenized: self._check(given, tokenized, params)
        except VLLMValidationError as error:
            self._explain(error, given, params)
            raise

    @contextmanager
    def truncating(self, params: TokenizeParams) -> Iterator[None]:
        """Replace vLLM's sentence about an image or a video that truncation cuts."""
        try:
            yield
        except VLLMValidationError as error:
            image, video = (self._tokens_per_item[modality] for modality in ("image", "video"))
            raise ValueError(
                f"truncate_prompt_tokens is {params.truncate_prompt_tokens}, which cuts off an image or "
                f"a video, wholly or in part; an image takes {image} tokens and a video {video}."
            ) from error

    def _check(self, given, tokenized, params: TokenizeParams):
        token_ids = tokenized.get("prompt_token_ids")
        if token_ids is None:
            return tokenized
        if params.truncate_prompt_tokens is not None:
            self._check_truncation(given, token_ids, params.truncate_prompt_tokens)
            counts, num_text_tokens = self._count_media(given), 0
        else:
            counts, num_text_tokens = self._count(given, token_ids)
        if params.max_total_tokens is not None:
            check_length(counts, self._tokens_per_item, num_text_tokens, params.max_total_tokens)
        return tokenized

    def _check_truncation(self, given, token_ids: Sequence[int], limit: int) -> None:
        if not given.get("multi_modal_data"):
            return
        for modality, token_id in self._tokenizer.placeholder_ids.items():
            if "prompt_token_ids" in given:
                before = given["prompt_token_ids"].count(token_id)
            else:
                before = split_placeholders(given["prompt"]).count(PLACEHOLDERS[modality])
            if before > token_ids.count(token_id):
                # To vLLM, -1 means as many as fit.
                remedy = "shorten the text" if limit < 0 else "raise truncate_prompt_tokens or shorten the text"
                raise ValueError(f"truncate_prompt_tokens is {limit}, which cuts {modality}s off the prompt; {remedy}.")

    def _explain(self, error: VLLMValidationError, given, params: TokenizeParams) -> None:
        """Replace vLLM's sentence about a prompt that is too long by one that also counts images and videos."""
        if error.parameter not in ("input_text", "input_tokens") or "prompt_embeds" in given:
            return
        at_least = error.parameter == "input_text"
        if at_least:
            counts = self._count_media(given)
            num_characters = sum(map(len, split_placeholders(given["prompt"])[::2]))
            num_text_tokens = -(-num_characters // self._tokenizer.max_chars_per_token)
        else:
            token_ids = given.get("prompt_token_ids") or self._tokenizer.encode(
                given["prompt"], add_special_tokens=params.add_special_tokens
            )
            counts, num_text_tokens = self._count(given, token_ids)
        check_length(
            counts,
            self._tokens_per_item,
            num_text_tokens,
            params.max_total_tokens,
            # vLLM 0.29 and 0.30 reserve max_tokens tokens for the answer.
            num_output_tokens=max(1, params.max_total_tokens - params.max_input_tokens),
            at_least=at_least,
        )

    def _count_media(self, given) -> dict[str, int]:
        return count_media(given.get("multi_modal_data") or {}, takes_embeddings=self._takes_embeddings)

    def _count(self, given, token_ids: Sequence[int]) -> tuple[dict[str, int], int]:
        """Return the images and videos of a prompt, by modality, and the number of all other tokens.

        Raises:
            ValueError: the prompt's placeholders do not match its images and videos.
        """
        media = given.get("multi_modal_data")
        if not media:
            return {}, len(token_ids)
        counts, placeholder_ids = self._count_media(given), self._tokenizer.placeholder_ids
        token_ids = collapse_placeholders(token_ids, placeholder_ids, counts, self._tokens_per_item)
        check_placeholders(token_ids, placeholder_ids, counts)
        return counts, len(token_ids) - sum(counts.values())


def check_length(
    counts: Mapping[str, int],
    tokens_per_item: Mapping[str, int],
    num_text_tokens: int,
    max_model_len: int,
    *,
    num_output_tokens: int = 1,
    at_least: bool = False,
) -> None:
    """Check that a prompt and its answer fit into the context.

    Args:
        counts: number of items, by modality.
        tokens_per_item: number of tokens that one item takes, by modality.
        num_text_tokens: number of all other tokens; 0 means that it is not known yet.
        max_model_len: length of the context, in tokens.
        num_output_tokens: number of tokens reserved for the answer.
        at_least: whether the text has at least, rather than exactly, `num_text_tokens`.

    Raises:
        ValueError: they do not fit; the sentence gives the tokens that images, videos and text take.
    """
    tokens = {modality: count * tokens_per_item[modality] for modality, count in counts.items() if count}
    total = sum(tokens.values()) + num_text_tokens
    if total + num_output_tokens <= max_model_len:
        return
    answer = (
        "answer included"
        if num_output_tokens == 1
        else f"of which max_tokens reserves {num_output_tokens} for the answer"
    )
    limit = f"the limit is {max_model_len} (max_model_len), {answer}."
    takes = [
        f"{counts[modality]} {modality}{'s take' if counts[modality] > 1 else ' takes'} {number}"
        for modality, number in tokens.items()
    ]
    if not num_text_tokens:
        raise ValueError(f"{' and '.join(takes)} tokens; {limit}")
    qualifier = "at least " if at_least else ""
    shares = f": {', '.join(takes)} and text takes {qualifier}{num_text_tokens}" if takes else ""
    raise ValueError(f"The prompt has {qualifier}{total} tokens{shares}; {limit}")
