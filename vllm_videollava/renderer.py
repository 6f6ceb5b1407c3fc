"""vLLM's renderer for this model: llava_v1 by default, and nothing reaches the engine unchecked."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from vllm.logger import init_logger
from vllm.renderers.hf import HfRenderer

from vllm_videollava.compat import api_process_count, current_prompt, current_request_id
from vllm_videollava.engine_gate import check_engine_input
from vllm_videollava.errors import MediaError
from vllm_videollava.lengths import check_length
from vllm_videollava.media_connector import media_become
from vllm_videollava.media_io import check_decoding
from vllm_videollava.message_parts import count_media, name_part
from vllm_videollava.prompt import CHAT_TEMPLATE, check_placeholders
from vllm_videollava.request_options import check_media_io_kwargs, check_mm_processor_kwargs

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
        check_decoding(api_process_count(config))

    def render_cmpl(self, *args, **kwargs):
        with _name_prompt():
            return super().render_cmpl(*args, **kwargs)

    def render_chat(self, conversations, *args, **kwargs):
        with _name_prompt():
            try:
                return super().render_chat(conversations, *args, **kwargs)
            except MediaError as error:
                raise _name_part(error, conversations) from error

    async def render_chat_async(self, conversations, *args, **kwargs):
        try:
            return await super().render_chat_async(conversations, *args, **kwargs)
        except MediaError as error:
            refusal = _name_part(error, conversations)
            _log(refusal)
            raise refusal from error

    def render_messages(self, messages, params):
        self._check_before_fetching(messages, params)
        with media_become(self._hf_config.pixel_format):
            return super().render_messages(messages, _with_default_template(params))

    async def render_messages_async(self, messages, params):
        self._check_before_fetching(messages, params)
        with media_become(self._hf_config.pixel_format):
            return await super().render_messages_async(messages, _with_default_template(params))

    def process_for_engine(self, prompt, *args, **kwargs):
        self._check_prompt(prompt)
        return self._checked(super().process_for_engine(prompt, *args, **kwargs))

    async def process_for_engine_async(self, prompt, *args, **kwargs):
        self._check_prompt(prompt)
        return self._checked(await super().process_for_engine_async(prompt, *args, **kwargs))

    def _check_before_fetching(self, messages: Sequence[Any], params) -> None:
        self._check_options(params.media_io_kwargs, params.mm_processor_kwargs)
        config = self._hf_config
        check_length(count_media(messages), config.tokens_per_item, 0, self.model_config.max_model_len)

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


def _name_part(error: MediaError, conversations: Sequence[Sequence[Any]]) -> MediaError:
    for messages in conversations:
        if (named := name_part(error, messages)) is not error:
            return named
    return error


def _log(refusal: MediaError) -> None:
    request_id = current_request_id()
    request = f"Request {request_id}" if request_id else "A request"
    logger.warning("%s refused: %s%s", request, refusal, f" ({refusal.detail})" if refusal.detail else "")


@contextmanager
def _name_prompt() -> Iterator[None]:
    """Say which prompt an error is about, and which file, if it is one of several that are rendered offline."""
    try:
        yield
    except ValueError as error:
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
