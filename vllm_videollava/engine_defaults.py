"""What vLLM assumes about this model without flags: tokenizer mode, renderer, frame loader."""

from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry

from vllm_videollava import video_loader

TOKENIZER_MODE = "video_llava"
"""Also the renderer's name: vLLM looks both up under the tokenizer mode."""


class VideoLlavaEngineDefaults(VerifyAndUpdateConfig):
    """Fills in what the user's flags leave open."""

    @staticmethod
    def verify_and_update_model_config(model_config) -> None:
        if model_config.tokenizer_mode not in ("auto", "hf", TOKENIZER_MODE):
            raise ValueError(f"tokenizer_mode is {model_config.tokenizer_mode!r}; 'auto' and 'hf' are supported.")
        model_config.tokenizer_mode = TOKENIZER_MODE
        media_io = model_config.multimodal_config.media_io_kwargs
        # Images keep their mode until this package converts them, as the original code does.
        media_io["image"] = {"image_mode": None, **media_io.get("image", {})}
        video = {"video_backend": video_loader.NAME, **media_io.get("video", {})}
        if video["video_backend"] == video_loader.NAME:
            # Not as num_frames, by which vLLM would cut off a sequence of JPEG frames.
            video = {"num_frames": -1, **video, "clip_frames": model_config.hf_config.num_frames}
        media_io["video"] = video


def register(architecture: str) -> None:
    MODELS_CONFIG_MAP[architecture] = VideoLlavaEngineDefaults
    TokenizerRegistry.register(TOKENIZER_MODE, "vllm_videollava.tokenizer", "VideoLlavaTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, "vllm_videollava.renderer", "VideoLlavaRenderer")
    VIDEO_LOADER_REGISTRY.register(video_loader.NAME)(video_loader.ClipLoader)
