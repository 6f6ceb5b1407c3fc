"""vLLM's renderer for this model: a prompt whose placeholders lack their media never reaches the engine."""

from vllm.renderers.hf import HfRenderer

from vllm_videollava.prompt import check_placeholders


class VideoLlavaRenderer(HfRenderer):
    """Renders and tokenises requests; prompts with media are checked by the multimodal processor."""

    def process_for_engine(self, prompt, *args, **kwargs):
        self._check_text_prompt(prompt)
        return super().process_for_engine(prompt, *args, **kwargs)

    async def process_for_engine_async(self, prompt, *args, **kwargs):
        self._check_text_prompt(prompt)
        return await super().process_for_engine_async(prompt, *args, **kwargs)

    def _check_text_prompt(self, prompt) -> None:
        if "prompt_token_ids" in prompt and not prompt.get("multi_modal_data"):
            check_placeholders(prompt["prompt_token_ids"], self.get_tokenizer().placeholder_ids, {})
