"""Sets vLLM up for this model at start: registers its parts, fills in defaults, and refuses unsupported flags."""

import importlib.metadata
import multiprocessing
import os

import vllm
from packaging.requirements import Requirement
from packaging.version import Version
from vllm import ModelRegistry, envs
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry

from vllm_videollava.checkpoints import config
from vllm_videollava.checkpoints.config import ARCHITECTURE, check_config, check_overrides
from vllm_videollava.checkpoints.weight_files import list_files
from vllm_videollava.compat import prepare_model_configs
from vllm_videollava.decoding.settings import read_settings
from vllm_videollava.media import connector
from vllm_videollava.media.options import check_media_io_kwargs, check_mm_processor_kwargs

TOKENIZER_MODE = "video_llava"
"""This is also the renderer's name, because vLLM looks up tokenizer and renderer by the tokenizer mode."""

# Child of vLLM's logger, to inherit its handlers and level.
logger = init_logger(f"vllm.{__name__}")


class VideoLlavaEngineDefaults(VerifyAndUpdateConfig):
    """Fills in the settings that the user's flags leave open."""

    @staticmethod
    def verify_and_update_model_config(model_config) -> None:
        if model_config.tokenizer_mode not in ("auto", "hf", TOKENIZER_MODE):
            raise ValueError(f"tokenizer_mode is {model_config.tokenizer_mode!r}; it must be 'auto' or 'hf'.")
        model_config.tokenizer_mode = TOKENIZER_MODE
        if envs.VLLM_MEDIA_CONNECTOR not in ("http", connector.NAME):
            raise ValueError(
                f"VLLM_MEDIA_CONNECTOR is {envs.VLLM_MEDIA_CONNECTOR!r}; unset it, "
                "because this model has its own connector."
            )
        # Read the settings now rather than at the first request, so that a wrong value prevents the start.
        read_settings()
        _check_frontend(model_config)
        check_overrides(model_config.hf_config, model_config.hf_overrides)
        check_config(model_config.hf_config, model_config.model)
        _check_revision(model_config)
        check_media_io_kwargs(model_config.multimodal_config.media_io_kwargs, model_config.hf_config.num_frames)
        check_mm_processor_kwargs(model_config.multimodal_config.mm_processor_kwargs)
        os.environ["VLLM_MEDIA_CONNECTOR"] = connector.NAME
        _cache_in_one_process(model_config.multimodal_config)

    @staticmethod
    def verify_and_update_config(vllm_config) -> None:
        model_config, load_format = vllm_config.model_config, vllm_config.load_config.load_format
        if model_config.multimodal_config.enable_mm_embeds and vllm_config.compilation_config.cudagraph_mm_encoder:
            raise ValueError("--enable-mm-embeds is set, which works only without cudagraph_mm_encoder; leave one out.")
        if model_config.hf_config.base_model and load_format not in ("auto", "hf", "dummy"):
            raise ValueError(
                f"--load-format is {load_format}, but {model_config.model} is a fine-tune, whose files are of several "
                "kinds; leave the flag out, or make the fine-tune a whole model with vllm-videollava convert."
            )


def _read_from_base(model_config) -> None:
    """Take the tokenizer and the generation config from a fine-tune's base, if the fine-tune comes without them."""
    if not isinstance(model_config.hf_config, config.VideoLlavaConfig):
        return
    folder, base = model_config.model, model_config.hf_config.base_model
    if model_config.tokenizer == folder and "tokenizer_config.json" not in list_files(folder):
        # Of what is wrong with a fine-tune, vLLM would only say that it has no tokenizer.
        check_config(model_config.hf_config, folder)
        if base:
            model_config.tokenizer, model_config.tokenizer_revision = base, None
    if base is None:
        return
    if model_config.generation_config == "auto" and "generation_config.json" not in list_files(folder):
        model_config.generation_config = base


def _cache_in_one_process(multimodal_config) -> None:
    """Make every request carry its pixels, rather than refer to pixels that the engine should still have.

    vLLM's default cache ("lru") counts an image or a video as sent even if its
    request is refused before it reaches the engine. Then the next request with
    the same image or video, by any client, is answered with status 500.
    """
    if multimodal_config.mm_processor_cache_type == "lru":
        # This is the cache that vLLM (0.29 to 0.33) uses when there are several API servers.
        multimodal_config.mm_processor_cache_type = "processor_only"


def _check_frontend(model_config) -> None:
    """Refuse settings under which requests would bypass the tokenizer, the renderer or the decoder."""
    if envs.VLLM_USE_RUST_FRONTEND:
        raise ValueError("VLLM_USE_RUST_FRONTEND is set; this model needs vLLM's Python frontend.")
    if model_config.skip_tokenizer_init:
        raise ValueError("--skip-tokenizer-init is set; this model needs its tokenizer to place images and videos.")


def _check_revision(model_config) -> None:
    """Refuse to mix revisions: vLLM reads only some of a fine-tune's files from the wanted one."""
    # vLLM has resolved what the user named, if anything.
    revision = getattr(model_config.revision, "initial", model_config.revision)
    if model_config.hf_config.base_model and revision not in (None, "main") and not os.path.isdir(model_config.model):
        raise ValueError(
            f"--revision is {revision}, but {model_config.model} is a fine-tune, and only its main revision can be "
            "served; download the other one, and serve its folder."
        )


def _warn_if_vllm_is_newer() -> None:
    """Warn, in the first of vLLM's processes, if this package has not been tested with a vLLM as new as this one."""
    bound = _read_bound()
    if bound is None or vllm.__version_tuple__[:2] < bound.release[:2] or multiprocessing.parent_process():
        return
    logger.warning(
        "vLLM %s is newer than what this version of vllm-videollava was tested with. If something fails, "
        "update vllm-videollava, or install a vLLM below %s.",
        vllm.__version__,
        bound,
    )


def _read_bound() -> Version | None:
    """Return the version that vLLM must be below, by this package's metadata, or None if it is not installed."""
    try:
        listed = map(Requirement, importlib.metadata.requires("vllm-videollava") or ())
    except importlib.metadata.PackageNotFoundError:
        return None
    specifiers = [one for requirement in listed if requirement.name == "vllm" for one in requirement.specifier]
    return next((Version(one.version) for one in specifiers if one.operator == "<"), None)


def register() -> None:
    """See `vllm_videollava.register`."""
    if ARCHITECTURE in ModelRegistry.get_supported_archs():
        return
    config.register()
    prepare_model_configs(_read_from_base)
    MODELS_CONFIG_MAP[ARCHITECTURE] = VideoLlavaEngineDefaults
    TokenizerRegistry.register(TOKENIZER_MODE, "vllm_videollava.text.tokenizer", "VideoLlavaTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, "vllm_videollava.rendering.renderer", "VideoLlavaRenderer")
    MEDIA_CONNECTOR_REGISTRY.register(connector.NAME)(connector.make_connector)
    ModelRegistry.register_model(ARCHITECTURE, f"vllm_videollava.model.video_llava:{ARCHITECTURE}")
    _warn_if_vllm_is_newer()
