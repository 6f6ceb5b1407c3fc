"""What vLLM assumes about this model without flags: tokenizer mode, renderer, media connector."""

import os

from vllm import envs
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry

from vllm_videollava import media_connector
from vllm_videollava.envs import read_settings

TOKENIZER_MODE = "video_llava"
"""Also the renderer's name: vLLM looks both up under the tokenizer mode."""


class VideoLlavaEngineDefaults(VerifyAndUpdateConfig):
    """Fills in what the user's flags leave open."""

    @staticmethod
    def verify_and_update_model_config(model_config) -> None:
        if model_config.tokenizer_mode not in ("auto", "hf", TOKENIZER_MODE):
            raise ValueError(f"tokenizer_mode is {model_config.tokenizer_mode!r}; 'auto' and 'hf' are supported.")
        model_config.tokenizer_mode = TOKENIZER_MODE
        if envs.VLLM_MEDIA_CONNECTOR not in ("http", media_connector.NAME):
            raise ValueError(f"VLLM_MEDIA_CONNECTOR is {envs.VLLM_MEDIA_CONNECTOR!r}; this model has its own.")
        # Now, rather than at the first request.
        read_settings()
        os.environ["VLLM_MEDIA_CONNECTOR"] = media_connector.NAME


def register(architecture: str) -> None:
    MODELS_CONFIG_MAP[architecture] = VideoLlavaEngineDefaults
    TokenizerRegistry.register(TOKENIZER_MODE, "vllm_videollava.tokenizer", "VideoLlavaTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, "vllm_videollava.renderer", "VideoLlavaRenderer")
    MEDIA_CONNECTOR_REGISTRY.register(media_connector.NAME)(media_connector.make_connector)
