"""vLLM's renderer for this model: llava_v1 by default, and nothing reaches the engine unchecked."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.renderers import TokenizeParams
from vllm.renderers.hf import HfRenderer

from vllm_videollava.compat import api_process_count, current_prompt, current_request_id
from vllm_videollava.decode_pool import shared_pool
from vllm_videollava.engine_gate import check_engine_input
from vllm_videollava.errors import MediaError
from vllm_videollava.lengths import check_length
from vllm_videollava.media import count_media
from vllm_videollava.media_connector import media_become
from vllm_videollava.media_io import check_decoding
from vllm_videollava.message_parts import Refusal, count_parts, name_part
from vllm_videollava.placeholders import PLACEHOLDERS, show_placeholders, split_placeholders
from vllm_videollava.prompt import CHAT_TEMPLATE, check_placeholders, collapse_placeholders
from vllm_videollava.request_options import check_media_io_kwargs, check_mm_processor_kwargs
from vllm_videollava.temporary_errors import TemporaryError

# Below vLLM's own logger, whose handlers and level hold for it.
logger = init_logger(f"vllm.{__name__}")


class VideoLlavaRenderer(HfRenderer):
    """Renders and tokenises requests; prompts with media are checked by the multimodal processor.

    Raises:
        RuntimeError: media cannot be decoded in this installation.
    """

    def __init__(self, config, tokenizer) -> None:
        super().__init__(config, tokenizer)
        self._hf_config = config.model_config.hf_config
        shared_pool(api_process_count(config)).add_user(self)
        check_decoding()

    def shutdown(self) -> None:
        super().shutdown()
        shared_pool().remove_user(self)

    def render_cmpl(self, *args, **kwargs):
        with _name_prompt():
            return super().render_cmpl(*args, **kwargs)

    def render_chat(self, conversations, chat_params, tok_params=None, **kwargs):
        with _name_prompt():
            self._check_before_fetching(conversations, chat_params, tok_params)
            try:
                return super().render_chat(conversations, chat_params, tok_params, **kwargs)
            except (MediaError, TemporaryError) as error:
                raise _name_part(error, conversations) from error

    async def render_chat_async(self, conversations, chat_params, tok_params=None, **kwargs):
        self._check_before_fetching(conversations, chat_params, tok_params)
        try:
            return await super().render_chat_async(conversations, chat_params, tok_params, **kwargs)
        except (MediaError, TemporaryError) as error:
            refusal = _name_part(error, conversations)
            _log(refusal)
            raise refusal from error

    def render_messages(self, messages, params):
        with media_become(self._hf_config.pixel_format):
            conversation, prompt = super().render_messages(messages, _with_default_template(params))
        return _without_sentinels(conversation), prompt

    async def render_messages_async(self, messages, params):
        with media_become(self._hf_config.pixel_format):
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
            counts, num_text_tokens = count_media(given.get("multi_modal_data") or {}), 0
        else:
            counts, num_text_tokens = self._count_tokens(given, token_ids)
        if params.max_total_tokens is not None:
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
        return self._hf_config.tokens_per_item

    def process_for_engine(self, prompt, *args, **kwargs):
        self._check_prompt(prompt)
        return self._checked(super().process_for_engine(prompt, *args, **kwargs))

    async def process_for_engine_async(self, prompt, *args, **kwargs):
        self._check_prompt(prompt)
        return self._checked(await super().process_for_engine_async(prompt, *args, **kwargs))

    def _check_before_fetching(self, conversations, chat_params, tok_params: TokenizeParams | None) -> None:
        self._check_options(chat_params.media_io_kwargs, chat_params.mm_processor_kwargs)
        limit = (tok_params or self.default_chat_tok_params).max_total_tokens
        for messages in conversations if limit is not None else ():
            check_length(count_parts(messages), self._tokens_per_item, 0, limit)

    def _check_options(self, media_io_kwargs: object, mm_processor_kwargs: object) -> None:
        check_media_io_kwargs(media_io_kwargs, self._hf_config.num_frames)
        check_mm_processor_kwargs(mm_processor_kwargs)

    def _check_prompt(self, prompt: Mapping[str, Any]) -> None:
        self._check_options(prompt.get("media_io_kwargs"), prompt.get("mm_processor_kwargs"))
        if "prompt_token_ids" in prompt and not prompt.get("multi_modal_data"):
            check_placeholders(prompt["prompt_token_ids"], self.get_tokenizer().placeholder_ids, {})

    def _checked(self, engine_input):
        check_engine_input(engine_input, self._hf_config)
        return engine_input


def _name_part(error: Refusal, conversations: Sequence[Sequence[Any]]) -> Refusal:
    for messages in conversations:
        if (named := name_part(error, messages)) is not error:
            return named
    return error


def _log(refusal: Refusal) -> None:
    request_id = current_request_id()
    request = f"Request {request_id}" if request_id else "A request"
    logger.warning("%s refused: %s%s", request, refusal, f" ({refusal.detail})" if refusal.detail else "")


@contextmanager
def _name_prompt() -> Iterator[None]:
    """Say which prompt an error is about, and which file, if it is one of several that are rendered offline."""
    try:
        yield
    except (ValueError, TemporaryError) as error:
        number, count = current_prompt() or (1, 1)
        if count > 1 and error.args:
            # In place, because vLLM's own errors have more to them than their sentence.
            file = _file_name(getattr(error, "url", None))
            sentence, *rest = error.args
            error.args = (f"Prompt {number}{file and f' ({file!r})'}: {sentence}", *rest)
        raise


def _file_name(url: str | None) -> str:
    if not url or url[:5].lower() == "data:":
        return ""
    return unquote(url.partition("?")[0].rpartition("/")[2])[-100:]


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
