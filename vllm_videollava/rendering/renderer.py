"""The renderer that vLLM uses for this model: llava_v1 is the default, and nothing reaches the engine unchecked."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers import TokenizeParams
from vllm.renderers.hf import HfRenderer

from vllm_videollava.compat import (
    TruncatingRenderer,
    api_process_count,
    check_all_adapters,
    check_all_engine_requests,
    current_requests,
)
from vllm_videollava.decoding.pool import shared_pool
from vllm_videollava.media.connector import add_engine, media_become, remove_engine
from vllm_videollava.media.embeddings import embedding_format, embeddings_become
from vllm_videollava.media.io import check_decoding
from vllm_videollava.media.options import background_colour, check_media_io_kwargs, check_mm_processor_kwargs
from vllm_videollava.rendering.adapters import AdapterGate
from vllm_videollava.rendering.engine_gate import check_engine_input, check_engine_request, hash_pixels, input_formats
from vllm_videollava.rendering.error_places import logging_refusals, naming_part, naming_prompt
from vllm_videollava.rendering.lengths import PromptLengths, check_length
from vllm_videollava.rendering.message_parts import check_messages, count_parts
from vllm_videollava.rendering.request_values import check_request
from vllm_videollava.text.conversation import CHAT_TEMPLATE, check_placeholders
from vllm_videollava.text.placeholders import PLACEHOLDERS, show_placeholders
from vllm_videollava.text.tokenizer import limit_token_ids

CHECKED = "video_llava_checked"
"""Attribute that marks images and videos as checked by this renderer."""


class VideoLlavaRenderer(TruncatingRenderer, HfRenderer):
    """Renders and tokenises requests; prompts with media are checked by the multimodal processor.

    Raises:
        RuntimeError: media cannot be decoded in this installation.
    """

    def __init__(self, config, tokenizer) -> None:
        super().__init__(config, tokenizer)
        self._hf_config = config.model_config.hf_config
        self._mm_config = config.model_config.multimodal_config
        self._runs_v2 = config.use_v2_model_runner
        self._adapter_gate = AdapterGate(config)
        check_all_engine_requests(VideoLlavaRenderer)
        check_all_adapters(VideoLlavaRenderer)
        add_engine(self._mm_config.media_io_kwargs, self._hf_config.pixel_format)
        limit_token_ids(self.get_tokenizer(), self._hf_config.text_config.vocab_size)
        shared_pool(api_process_count(config)).add_user(self)
        check_decoding()
        # vLLM sets the flag for embeddings by itself, for a consumer of another engine's.
        has_graphs = config.compilation_config.cudagraph_mm_encoder
        self._embedding_format = None if has_graphs else embedding_format(config.model_config)
        self._inputs = input_formats(self._hf_config, self._mm_config, self._embedding_format)
        self._lengths = PromptLengths(
            self.get_tokenizer(),
            self._hf_config.tokens_per_item,
            takes_embeddings=self._embedding_format is not None,
        )

    def shutdown(self) -> None:
        super().shutdown()
        remove_engine(self._mm_config.media_io_kwargs)
        shared_pool().remove_user(self)

    def render_cmpl(self, *args, **kwargs):
        with naming_prompt():
            return super().render_cmpl(*args, **kwargs)

    def render_chat(self, conversations, chat_params, tok_params=None, **kwargs):
        with naming_prompt(), naming_part(conversations):
            self._check_before_fetching(conversations, chat_params, tok_params)
            return super().render_chat(conversations, chat_params, tok_params, **kwargs)

    async def render_cmpl_async(self, *args, **kwargs):
        _check_requests()
        return await super().render_cmpl_async(*args, **kwargs)

    async def render_chat_async(self, conversations, chat_params, tok_params=None, **kwargs):
        with logging_refusals(), naming_part(conversations):
            _check_requests()
            self._check_before_fetching(conversations, chat_params, tok_params)
            return await super().render_chat_async(conversations, chat_params, tok_params, **kwargs)

    def render_messages(self, messages, params):
        with media_become(self._hf_config.pixel_format), embeddings_become(self._embedding_format):
            conversation, prompt = super().render_messages(messages, _with_default_template(params))
        return _as_texts(conversation), _with_colour_in_ids(prompt, params.media_io_kwargs)

    async def render_messages_async(self, messages, params):
        with media_become(self._hf_config.pixel_format), embeddings_become(self._embedding_format):
            conversation, prompt = await super().render_messages_async(messages, _with_default_template(params))
        return _as_texts(conversation), _with_colour_in_ids(prompt, params.media_io_kwargs)

    def tokenize_prompt(self, prompt, params):
        with self._lengths.checked(prompt, params) as check:
            return check(super().tokenize_prompt(prompt, params))

    async def tokenize_prompt_async(self, prompt, params):
        with self._lengths.checked(prompt, params) as check:
            return check(await super().tokenize_prompt_async(prompt, params))

    def truncating(self, params):
        return self._lengths.truncating(params)

    def process_for_engine(self, prompt, *args, **kwargs):
        self._check_prompt(prompt)
        return self._checked(super().process_for_engine(prompt, *args, **kwargs))

    async def process_for_engine_async(self, prompt, *args, **kwargs):
        self._check_prompt(prompt)
        return self._checked(await super().process_for_engine_async(prompt, *args, **kwargs))

    def _check_before_fetching(self, conversations, chat_params, tok_params: TokenizeParams | None) -> None:
        self._check_options(chat_params.media_io_kwargs, chat_params.mm_processor_kwargs)
        limit = (tok_params or self.default_chat_tok_params).max_total_tokens
        for messages in conversations:
            check_messages(messages, takes_embeddings=self._embedding_format is not None)
        for messages in conversations if limit is not None else ():
            check_length(count_parts(messages), self._hf_config.tokens_per_item, 0, limit)

    def _check_options(self, media_io_kwargs: object, mm_processor_kwargs: object) -> None:
        check_media_io_kwargs(media_io_kwargs, self._hf_config.num_frames)
        check_mm_processor_kwargs(mm_processor_kwargs)

    def _check_prompt(self, prompt: Mapping[str, Any]) -> None:
        self._check_options(prompt.get("media_io_kwargs"), prompt.get("mm_processor_kwargs"))
        if "prompt_token_ids" in prompt and not prompt.get("multi_modal_data"):
            check_placeholders(prompt["prompt_token_ids"], self.get_tokenizer().placeholder_ids, {})

    def _checked(self, engine_input):
        shares_memory = self._mm_config.mm_processor_cache_type == "shm"
        check_engine_input(engine_input, self._hf_config, self._inputs, shares_memory=shares_memory)
        if engine_input["type"] == "multimodal":
            # Beam search passes its own prompts here, too.
            setattr(engine_input["mm_kwargs"], CHECKED, True)
        return engine_input

    def check_other_input(self, engine_input) -> None:
        """Check input that does not come from this renderer, such as that of vLLM's endpoint /inference/v1/generate.

        Its items are renamed by the hashes of their pixels, because a client chose their names.

        Raises:
            VLLMValidationError: the input cannot be given to the engine. From here on, vLLM would turn any other error
                into a status of 500.
        """
        if not isinstance(engine_input, dict) or "type" not in engine_input:
            return
        if hasattr(engine_input.get("mm_kwargs"), CHECKED):
            return
        with _raising_vllm_errors():
            check_engine_input(engine_input, self._hf_config, self._inputs, shares_memory=False)
        if engine_input["type"] == "multimodal":
            algorithm = self._mm_config.mm_hasher_algorithm
            engine_input["mm_hashes"] = hash_pixels(engine_input["mm_kwargs"], algorithm)

    def check_engine_request(self, request) -> None:
        """Check a request that is about to be sent to the engine.

        Raises:
            VLLMValidationError: an option cannot be sent, or the engine cannot do what it says.
        """
        with _raising_vllm_errors():
            check_engine_request(request, runs_v2=self._runs_v2)
            if request.lora_request is not None:
                self._adapter_gate.check(request.lora_request.lora_path)

    def check_adapter(self, path: str) -> None:
        """Check an adapter that a server is told to load.

        Raises:
            ValueError: the engine could not load it, or it would answer wrongly.
        """
        self._adapter_gate.check(path, again=True)


@contextmanager
def _raising_vllm_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise VLLMValidationError(str(error)) from error


def _check_requests() -> None:
    for request in current_requests():
        check_request(request)


def _with_default_template(params):
    # vLLM would prefer the checkpoint's template, and those published in
    # transformers' format do not give this conversation.
    return params if params.chat_template else dataclasses.replace(params, chat_template=CHAT_TEMPLATE)


def _with_colour_in_ids(prompt, media_io_kwargs):
    """Keep images with the same id but different backgrounds apart. From 0.31 on, vLLM's own caches do so."""
    colour, ids = background_colour(media_io_kwargs), prompt.get("multi_modal_uuids")
    if colour is not None and ids and "image" in ids:
        images = [None if name is None else f"{colour}-{name}" for name in ids["image"]]
        prompt["multi_modal_uuids"] = {**ids, "image": images}
    return prompt


def _as_texts(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # With the option `echo`, the answer repeats a message of it, and vLLM expects every part there to be text.
    return [{**message, "content": _as_text(message.get("content"))} for message in conversation]


def _as_text(content: Any) -> Any:
    if isinstance(content, list):
        return "\n".join(part.get("text") or PLACEHOLDERS.get(part.get("type"), "") for part in content)
    return show_placeholders(content) if isinstance(content, str) else content
