"""vLLM's renderer for this model: llava_v1 by default, and no placeholder without its media reaches the engine."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.renderers.hf import HfRenderer

from vllm_videollava.compat import current_request_id
from vllm_videollava.errors import MediaError
from vllm_videollava.fetch_errors import FetchError
from vllm_videollava.prompt import CHAT_TEMPLATE, check_placeholders

# Below vLLM's own logger, whose handlers and level hold for it.
logger = init_logger(f"vllm.{__name__}")


class VideoLlavaRenderer(HfRenderer):
    """Renders and tokenises requests; prompts with media are checked by the multimodal processor."""

    def render_chat(self, conversations, *args, **kwargs):
        try:
            return super().render_chat(conversations, *args, **kwargs)
        except (MediaError, FetchError) as error:
            raise _name_part(error, conversations) from error

    async def render_chat_async(self, conversations, *args, **kwargs):
        try:
            return await super().render_chat_async(conversations, *args, **kwargs)
        except (MediaError, FetchError) as error:
            refusal = _name_part(error, conversations)
            detail = f" ({refusal.detail})" if refusal.detail else ""
            logger.warning("Request %s refused: %s%s", current_request_id(), refusal, detail)
            raise refusal from error

    def render_messages(self, messages, params):
        return super().render_messages(messages, _with_default_template(params))

    async def render_messages_async(self, messages, params):
        return await super().render_messages_async(messages, _with_default_template(params))

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


def _name_part(
    error: MediaError | FetchError, conversations: Sequence[Sequence[dict[str, Any]]]
) -> MediaError | FetchError:
    """Say which part of which message the error is about, if it is about one that a client named by its URL."""
    for messages in conversations if error.url else ():
        for message_number, message in enumerate(messages, 1):
            content = message.get("content")
            for part_number, part in enumerate(content if isinstance(content, list) else (), 1):
                if error.url in _urls(part):
                    sentence = f"Message {message_number}, part {part_number}: {error}"
                    return type(error)(sentence, detail=error.detail)
    return error


def _urls(part: Any) -> list[Any]:
    """Return the URLs in a part of a message, which is {"video_url": {"url": ...}} or {"video_url": ...}."""
    values = list(part.values()) if isinstance(part, dict) else []
    return [value.get("url") if isinstance(value, dict) else value for value in values]
