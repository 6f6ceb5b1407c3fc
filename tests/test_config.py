"""Both formats' config.json become one config; what cannot be served is refused by name; LLaVA is left alone."""

import copy
import json
import pickle

import pytest
from checkpoints import change_config, copy_checkpoint
from original_format import write_json
from random_checkpoint import CONFIG, TOWER
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import VideoLlavaConfig as TransformersConfig

import vllm_videollava
from vllm_videollava.config import VideoLlavaConfig

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


@pytest.fixture(autouse=True, scope="module")
def _registered():
    vllm_videollava.register()
    vllm_videollava.register()


@pytest.fixture
def folder(checkpoint, tmp_path):
    return copy_checkpoint(checkpoint, tmp_path / "checkpoint")


def test_the_official_checkpoint_needs_no_network(tmp_path):
    write_json(tmp_path / "config.json", OFFICIAL)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VideoLlavaConfig)
    assert config.model_type == "video_llava"
    assert config.architectures == [vllm_videollava.ARCHITECTURE]
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
    "projector": ({"mm_projector_type": "qformer"}, "mm_projector_type is 'qformer'; 'linear' and 'mlpNx_gelu'"),
    "projector of no layers": ({"mm_projector_type": "mlp0x_gelu"}, "mm_projector_type is 'mlp0x_gelu'"),
    "start and end tokens": ({"mm_use_im_start_end": True}, "mm_use_im_start_end is true; only"),
    "unreadable tower": ({"mm_video_tower": "MCG/videomae"}, "mm_video_tower is 'MCG/videomae', whose config.json"),
    "no image tower": ({"mm_image_tower": None}, "mm_image_tower is None; the name of"),
    "no video tower": ({"mm_video_tower": None}, "mm_video_tower is None; the name of"),
    "select feature": ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature is 'cls'; 'patch'"),
    "projector that is no name": ({"mm_projector_type": None}, "mm_projector_type is None; 'linear'"),
    "layer that is not there": ({"mm_vision_select_layer": -30}, "mm_vision_select_layer is -30; the number"),
    "layer that is no number": ({"mm_vision_select_layer": "x"}, "mm_vision_select_layer is 'x'; the number"),
    "sizes that differ": ({"mm_hidden_size": 32}, "mm_hidden_size is 32, but the image tower has 64"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused(folder, values, message):
    with pytest.raises(ValueError, match=message) as error:
        AutoConfig.from_pretrained(change_config(folder, **values))
    assert str(error.value).count(". ") == 0


def test_a_tower_that_is_no_languagebind_tower_is_refused(folder, tmp_path):
    CLIPVisionConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="a 'clip_vision_model' model; only LanguageBind towers are supported"):
        AutoConfig.from_pretrained(change_config(folder, mm_video_tower=str(tmp_path / "clip")))


def test_the_engine_refuses_with_the_same_sentence(folder):
    from vllm.engine.arg_utils import EngineArgs

    change_config(folder, mm_projector_type="qformer")
    with pytest.raises(ValueError, match="mm_projector_type is 'qformer'"):
        EngineArgs(model=str(folder)).create_model_config()


@pytest.mark.parametrize("values", [LlavaConfig().to_dict(), {**CONFIG, "mm_vision_tower": "openai/clip"}])
def test_llava_is_left_alone(tmp_path, values):
    values = {name: value for name, value in values.items() if name not in ("mm_video_tower", "mm_image_tower")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LlavaConfig
    assert config.to_dict() == LlavaConfig.from_dict(values, name_or_path=str(tmp_path)).to_dict()
