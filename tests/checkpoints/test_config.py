"""Both formats' config.json become one config; what cannot be served is refused by name; LLaVA is left alone."""

import copy
import json
import pickle
import re
from functools import partial

import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import VideoLlavaConfig as TransformersConfig

import vllm_videollava
from helpers.checkpoints import change_config, copy_checkpoint, write_transformers_checkpoint
from helpers.random_checkpoint import CONFIG, TOWER
from vllm_videollava.checkpoints.config import ARCHITECTURE, VideoLlavaConfig, check_config
from vllm_videollava.conversion.small_files import write_json

# config.json of LanguageBind/Video-LLaVA-7B, as far as it matters.
OFFICIAL = {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_image_tower": "LanguageBind/LanguageBind_Image",
    "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}


def with_values(config, **values):
    config.update(values)
    return config


@pytest.fixture(autouse=True, scope="module")
def _registered():
    vllm_videollava.register()
    vllm_videollava.register()


@pytest.fixture
def folder(checkpoint, tmp_path):
    return copy_checkpoint(checkpoint, tmp_path / "checkpoint")


def read_config(folder) -> VideoLlavaConfig:
    """Read a checkpoint's config, as vLLM does when there are no `hf_overrides`."""
    config = AutoConfig.from_pretrained(folder)
    check_config(config, str(folder))
    return config


def test_the_official_checkpoint_needs_no_network(tmp_path):
    write_json(tmp_path / "config.json", OFFICIAL)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VideoLlavaConfig)
    assert config.model_type == "video_llava"
    assert config.architectures == [ARCHITECTURE]
    assert config.original_format
    assert (config.tokens_per_image, config.tokens_per_video, config.num_frames) == (256, 2056, 8)
    assert config.video_config.add_time_attn
    assert not config.image_config.add_time_attn
    for tower in (config.image_config, config.video_config):
        assert (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads) == (1024, 24, 16)
        assert (tower.image_size, tower.patch_size, tower.hidden_act) == (224, 14, "gelu")
    text = config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size, text.rms_norm_eps) == (4096, 32, 32000, 1e-5)


def test_transformers_format(tmp_path):
    TransformersConfig(text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096)).save_pretrained(
        tmp_path
    )
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VideoLlavaConfig)
    assert not config.original_format
    assert (config.tokens_per_image, config.tokens_per_video) == (256, 2056)
    assert not config.video_config.add_time_attn
    assert config.video_config.hidden_act == "quick_gelu"
    assert config.text_config.vocab_size == 32064


@pytest.mark.parametrize("absolute", [True, False])
def test_tower_folders_are_absolute_or_beside_the_weights(folder, absolute):
    write_json(folder / "LanguageBind_Image" / "config.json", {"vision_config": {**TOWER, "num_hidden_layers": 5}})
    name = str(folder / "LanguageBind_Image") if absolute else "LanguageBind_Image"
    config = AutoConfig.from_pretrained(change_config(folder, mm_image_tower=name))
    assert config.image_config.num_hidden_layers == 5


@pytest.mark.parametrize("change", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_the_config_survives_travel(folder, change):
    config = AutoConfig.from_pretrained(folder)
    assert change(config).to_dict() == config.to_dict()
    assert VideoLlavaConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


REFUSED = {
    "projector": (
        {"mm_projector_type": "qformer"},
        "mm_projector_type is 'qformer'; it must be 'linear' or 'mlpNx_gelu'",
    ),
    "projector of no layers": ({"mm_projector_type": "mlp0x_gelu"}, "mm_projector_type is 'mlp0x_gelu'"),
    "start and end tokens": ({"mm_use_im_start_end": True}, "mm_use_im_start_end is true; it must be false"),
    "unreadable tower": ({"mm_video_tower": "MCG/videomae"}, "mm_video_tower is 'MCG/videomae', whose config.json"),
    "no image tower": ({"mm_image_tower": None}, "mm_image_tower is null or missing; it must name a"),
    "no video tower": ({"mm_video_tower": None}, "mm_video_tower is null or missing; it must name a"),
    "select feature": ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature is 'cls'; it must be 'patch'"),
    "projector that is no name": (
        {"mm_projector_type": None},
        "mm_projector_type is null or missing; it must be 'linear'",
    ),
    "layer that is not there": (
        {"mm_vision_select_layer": -30},
        "mm_vision_select_layer is -30; it must be a whole number from -",
    ),
    "layer that is no number": (
        {"mm_vision_select_layer": "x"},
        "mm_vision_select_layer is 'x'; it must be a whole number from -",
    ),
    "sizes that differ": (
        {"mm_hidden_size": 32},
        "mm_hidden_size is 32, the image tower has 64 features and the video tower 64; they",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused(folder, values, message):
    with pytest.raises(ValueError, match=message) as error:
        read_config(change_config(folder, **values))
    assert str(error.value).count(". ") == 0


def test_a_tower_that_is_no_languagebind_tower_is_refused(folder, tmp_path):
    CLIPVisionConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(
        ValueError, match=r"LanguageBind tower: in its config\.json, model_type is 'clip_vision_model'\.$"
    ):
        read_config(change_config(folder, mm_video_tower=str(tmp_path / "clip")))


def test_the_engine_refuses_with_the_same_sentence(folder):
    from vllm.engine.arg_utils import EngineArgs

    change_config(folder, mm_projector_type="qformer")
    with pytest.raises(ValueError, match="mm_projector_type is 'qformer'"):
        EngineArgs(model=str(folder)).create_model_config()


FRAMES = "this model always uses 8 frames of a video"
NOT_OURS = "which the weights determine; leave it out"
REFUSED_FLAGS = {
    "frames": ({"media_io_kwargs": {"video": {"num_frames": 32}}}, f"num_frames is 32; {FRAMES}"),
    "rate": ({"media_io_kwargs": {"video": {"fps": 1}}}, f"fps is 1; {FRAMES}"),
    "mistyped modality": ({"media_io_kwargs": {"videos": {"fps": 1}}}, "has the unknown key 'videos'"),
    "the connector's own": (
        {"media_io_kwargs": {"video_llava": {"image_size": 56}}},
        "has the unknown key 'video_llava'",
    ),
    "background": ({"media_io_kwargs": {"image": {"rgba_background_color": [0, 0]}}}, "rgba_background_color is"),
    "mistyped option": (
        {"mm_processor_kwargs": {"image_aspect_ration": "pad"}},
        "has the unknown key 'image_aspect_ration'",
    ),
    "mistyped value": ({"mm_processor_kwargs": {"image_aspect_ratio": "fill"}}, "image_aspect_ratio is 'fill'"),
    "argument": ({"mm_processor_kwargs": {"images": []}}, "has the unknown key 'images'"),
    "no tokenizer": ({"skip_tokenizer_init": True}, "--skip-tokenizer-init is set"),
    "more frames": ({"hf_overrides": {"num_frames": 16}}, f"'num_frames', {NOT_OURS}"),
    "frames of the tower": (
        {"hf_overrides": {"video_config": {"num_frames": 16}}},
        f"'video_config', {NOT_OURS}",
    ),
    "size": ({"hf_overrides": {"image_config": {"image_size": 112}}}, f"'image_config', {NOT_OURS}"),
    "layer": ({"hf_overrides": {"vision_feature_layer": -1}}, f"'vision_feature_layer', {NOT_OURS}"),
    "format": ({"hf_overrides": {"original_format": False}}, f"'original_format', {NOT_OURS}"),
    "the original's name": (
        {"hf_overrides": {"mm_vision_select_layer": -1}},
        f"'mm_vision_select_layer', {NOT_OURS}",
    ),
    "transformers' name": (
        {"hf_overrides": {"vision_config": {"image_size": 112}}},
        f"'vision_config', {NOT_OURS}",
    ),
    "misplaced": ({"hf_overrides": {"max_position_embeddings": 512}}, "belongs in 'text_config'; put it there"),
    "misplaced rope": (
        {"hf_overrides": {"rope_parameters": {"rope_type": "linear", "factor": 2}}},
        "belongs in 'text_config'",
    ),
    "frames by a function": (
        {"hf_overrides": partial(with_values, num_frames=16)},
        "num_frames is 16, but the video tower",
    ),
    "layer by a function": (
        {"hf_overrides": partial(with_values, vision_feature_layer=9)},
        "vision_feature_layer is 9",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED_FLAGS.values(), ids=REFUSED_FLAGS)
def test_flags_that_can_never_work_are_refused(checkpoint, options, message):
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(ValueError, match=re.escape(message)):
        EngineArgs(model=str(checkpoint), **options).create_model_config()


def test_embeddings_are_refused_beside_graphs_of_the_towers(checkpoint):
    from vllm.engine.arg_utils import EngineArgs

    args = EngineArgs(
        str(checkpoint), enable_mm_embeds=True, compilation_config={"cudagraph_mm_encoder": True}, max_model_len=1024
    )
    with pytest.raises(ValueError, match="--enable-mm-embeds is set, which works only without cudagraph_mm_encoder"):
        args.create_engine_config()


def test_more_frames_are_refused_without_attention_over_time_too(checkpoint, tmp_path):
    from vllm.engine.arg_utils import EngineArgs

    folder = write_transformers_checkpoint(tmp_path / "transformers", checkpoint)
    for options in ({"media_io_kwargs": {"video": {"num_frames": 16}}}, {"hf_overrides": {"num_frames": 16}}):
        with pytest.raises(ValueError, match="num_frames"):
            EngineArgs(model=str(folder), **options).create_model_config()


@pytest.mark.parametrize(("asked", "cache"), [(None, "processor_only"), ("lru", "processor_only"), ("shm", "shm")])
def test_no_cache_of_the_engine_is_taken_for_filled_by_what_was_refused(checkpoint, asked, cache):
    from vllm.engine.arg_utils import EngineArgs

    options = {"mm_processor_cache_type": asked} if asked else {}
    config = EngineArgs(model=str(checkpoint), **options).create_model_config()
    assert config.multimodal_config.mm_processor_cache_type == cache


def test_vllms_rust_frontend_is_refused(checkpoint, monkeypatch):
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match="VLLM_USE_RUST_FRONTEND is set; this model needs vLLM's Python frontend"):
        EngineArgs(model=str(checkpoint)).create_model_config()


ACCEPTED_FLAGS = [
    {"media_io_kwargs": {"video": {"num_frames": 8, "fps": -1}, "image": {"rgba_background_color": [255, 255, 255]}}},
    {"mm_processor_kwargs": {"image_aspect_ratio": "pad"}},
    {"mm_processor_kwargs": {"image_aspect_ratio": None}},
    {"mm_processor_device": "cpu"},
    {
        "hf_overrides": {
            "text_config": {"max_position_embeddings": 512},
            "architectures": [ARCHITECTURE],
        }
    },
    {"hf_overrides": {"quantization_config_dict_json": "{}", "tie_word_embeddings": False}},
    {"hf_overrides": partial(with_values, num_frames=8)},
]


@pytest.mark.parametrize("options", ACCEPTED_FLAGS, ids=str)
def test_flags_that_can_work_are_taken(checkpoint, options):
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs(model=str(checkpoint), **options).create_model_config()


@pytest.mark.parametrize("values", [LlavaConfig().to_dict(), {**CONFIG, "mm_vision_tower": "openai/clip"}])
def test_llava_is_left_alone(tmp_path, values):
    values = {name: value for name, value in values.items() if name not in ("mm_video_tower", "mm_image_tower")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LlavaConfig
    assert config.to_dict() == LlavaConfig.from_dict(values, name_or_path=str(tmp_path)).to_dict()
