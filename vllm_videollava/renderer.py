"""vLLM's renderer for this model: llava_v1 by default, and no placeholder without its media reaches the engine."""

import dataclasses

from vllm.renderers.hf import HfRenderer

from vllm_videollava.prompt import CHAT_TEMPLATE, check_placeholders


class VideoLlavaRenderer(HfRenderer):
    """Renders and tokenises requests; prompts with media are checked by the multimodal processor."""

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
