"""vLLM's renderer for this model: llava_v1 by default, and no placeholder without its media reaches the engine."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.renderers import TokenizeParams
from vllm.renderers.hf import HfRenderer

from vllm_videollava.compat import current_request_id
from vllm_videollava.errors import MediaError
from vllm_videollava.lengths import check_length
from vllm_videollava.media import count_media
from vllm_videollava.placeholders import PLACEHOLDERS, show_placeholders, split_placeholders
from vllm_videollava.prompt import CHAT_TEMPLATE, check_placeholders, collapse_placeholders

# Below vLLM's own logger, whose handlers and level hold for it.
logger = init_logger(f"vllm.{__name__}")


class VideoLlavaRenderer(HfRenderer):
    """Renders and tokenises requests; prompts with media are checked by the multimodal processor."""

    def render_chat(self, conversations, *args, **kwargs):
        try:
            return super().render_chat(conversations, *args, **kwargs)
        except MediaError as error:
            raise _name_part(error, conversations) from error

    async def render_chat_async(self, conversations, *args, **kwargs):
        try:
            return await super().render_chat_async(conversations, *args, **kwargs)
        except MediaError as error:
            refusal = _name_part(error, conversations)
            detail = f" ({refusal.detail})" if refusal.detail else ""
            logger.warning("Request %s refused: %s%s", current_request_id(), refusal, detail)
            raise refusal from error

    def render_messages(self, messages, params):
        conversation, prompt = super().render_messages(messages, _with_default_template(params))
        return _without_sentinels(conversation), prompt

    async def render_messages_async(self, messages, params):
        conversation, prompt = await super().render_messages_async(messages, _with_default_template(params))
        return _without_sentinels(conversation), prompt

    def tokenize_prompt(self, prompt, params):
        given = dict(prompt)
        try:
            tokenized = super().tokenize_prompt(prompt, params)
        except VLLMValidationError as error:
            self._explain_length(error, given, params)
            raise
        self._check_length(given, tokenized, params)
        return tokenized

    async def tokenize_prompt_async(self, prompt, params):
        given = dict(prompt)
        try:
            tokenized = await super().tokenize_prompt_async(prompt, params)
        except VLLMValidationError as error:
            self._explain_length(error, given, params)
            raise
        self._check_length(given, tokenized, params)
        return tokenized

    def _check_length(self, given, tokenized, params: TokenizeParams) -> None:
        """Refuse a prompt that is too long once images and videos take their tokens, or that has lost one of them."""
        token_ids = tokenized.get("prompt_token_ids")
        if token_ids is None:
            return
        if params.truncate_prompt_tokens is not None:
            self._check_truncation(given, token_ids, params.truncate_prompt_tokens)
        elif params.max_total_tokens is not None:
            counts, num_text_tokens = self._count_tokens(given, token_ids)
            check_length(counts, self._tokens_per_item, num_text_tokens, params.max_total_tokens)

    def _check_truncation(self, given, token_ids: Sequence[int], limit: int) -> None:
        if not given.get("multi_modal_data"):
            return
        for modality, token_id in self.get_tokenizer().placeholder_ids.items():
            if "prompt_token_ids" in given:
                before = given["prompt_token_ids"].count(token_id)
            else:
                before = split_placeholders(given["prompt"]).count(PLACEHOLDERS[modality])
            if lost := before - token_ids.count(token_id):
                raise ValueError(
                    f"truncate_prompt_tokens={limit} cuts {lost} of {before} {modality}(s) off the prompt; "
                    "raise it or shorten the text."
                )

    def _truncate_expanded_prompt(self, engine_input, params) -> None:
        # vLLM calls this, from 0.31 on, once images and videos have taken their tokens.
        try:
            super()._truncate_expanded_prompt(engine_input, params)
        except VLLMValidationError as error:
            image, video = (self._tokens_per_item[modality] for modality in ("image", "video"))
            raise ValueError(
                f"truncate_prompt_tokens={params.truncate_prompt_tokens} cuts into an image or a video: an image takes "
                f"{image} tokens, a video {video}; raise it or shorten the text."
            ) from error

    def _explain_length(self, error: VLLMValidationError, given, params: TokenizeParams) -> None:
        """Raise in place of vLLM's sentence about a prompt that is too long one that counts images and videos, too."""
        if error.parameter not in ("input_text", "input_tokens") or "prompt_embeds" in given:
            return
        tokenizer, at_least = self.get_tokenizer(), error.parameter == "input_text"
        if at_least:
            counts = count_media(given.get("multi_modal_data") or {})
            num_characters = sum(map(len, split_placeholders(given["prompt"])[::2]))
            num_text_tokens = -(-num_characters // tokenizer.max_chars_per_token)
        else:
            token_ids = given.get("prompt_token_ids") or tokenizer.encode(
                given["prompt"], add_special_tokens=params.add_special_tokens
            )
            counts, num_text_tokens = self._count_tokens(given, token_ids)
        check_length(
            counts,
            self._tokens_per_item,
            num_text_tokens,
            params.max_total_tokens,
            # vLLM 0.29 and 0.30 keep what max_tokens asks for.
            num_output_tokens=max(1, params.max_total_tokens - params.max_input_tokens),
            at_least=at_least,
        )

    def _count_tokens(self, given, token_ids: Sequence[int]) -> tuple[dict[str, int], int]:
        """Return the images and videos of a prompt, by modality, and the number of all other tokens.

        Raises:
            ValueError: the prompt's placeholders are not those of its images and videos.
        """
        media = given.get("multi_modal_data")
        if not media:
            return {}, len(token_ids)
        counts, placeholder_ids = count_media(media), self.get_tokenizer().placeholder_ids
        token_ids = collapse_placeholders(token_ids, placeholder_ids, counts, self._tokens_per_item)
        check_placeholders(token_ids, placeholder_ids, counts)
        return counts, len(token_ids) - sum(counts.values())

    @property
    def _tokens_per_item(self) -> dict[str, int]:
        return self.model_config.hf_config.tokens_per_item

    def process_for_engine(self, prompt, *args, **kwargs):
        self._check_text_prompt(prompt)
        return super().process_for_engine(prompt, *args, **kwargs)

    async def process_for_engine_async(self, prompt, *args, **kwargs):
        self._check_text_prompt(prompt)
        return await super().process_for_engine_async(prompt, *args, **kwargs)

    def _check_text_prompt(self, prompt) -> None:
        if "prompt_token_ids" in prompt and not prompt.get("multi_modal_data"):
            check_placeholders(prompt["prompt_token_ids"], self.get_tokenizer().placeholder_ids, {})


def _with_default_template(params):
    # vLLM would take one from the checkpoint first, and those published with
    # transformers' format do not give this conversation.
    return params if params.chat_template else dataclasses.replace(params, chat_template=CHAT_TEMPLATE)


def _without_sentinels(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The option `echo` answers with a message of it.
    return [
        {**message, "content": show_placeholders(message["content"])}
        if isinstance(message.get("content"), str)
        else message
        for message in conversation
    ]


def _name_part(error: MediaError, conversations: Sequence[Sequence[dict[str, Any]]]) -> MediaError:
    """Say which part of which message the error is about, if it is about one that a client named by its URL."""
    for messages in conversations if error.url else ():
        for message_number, message in enumerate(messages, 1):
            content = message.get("content")
            for part_number, part in enumerate(content if isinstance(content, list) else (), 1):
                if error.url in _urls(part):
                    sentence = f"Message {message_number}, part {part_number}: {error}"
                    return MediaError(sentence, detail=error.detail)
    return error


def _urls(part: Any) -> list[Any]:
    """Return the URLs in a part of a message, which is {"video_url": {"url": ...}} or {"video_url": ...}."""
    values = list(part.values()) if isinstance(part, dict) else []
    return [value.get("url") if isinstance(value, dict) else value for value in values]
