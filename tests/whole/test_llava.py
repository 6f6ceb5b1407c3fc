"""A genuine LLaVA checkpoint behaves the same with the plugin and without it."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from helpers.checkpoints import change_tensors, restore_vision_model
from helpers.paths import TESTS


@pytest.fixture(scope="module")
def llava(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    tokenizer = LlamaTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer)
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    # The names that vLLM 0.32 knows.
    change_tensors(folder, restore_vision_model)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def import_path(tmp_path_factory) -> str:
    """Let vLLM's LLaVA be imported without torchvision, which a part needs that no CLIP tower uses (Pixtral's)."""
    if importlib.util.find_spec("torchvision"):
        return ""
    folder = tmp_path_factory.mktemp("import_path")
    (folder / "sitecustomize.py").write_text(
        "import sys, types\n"
        "name = 'transformers.models.pixtral.image_processing_pixtral'\n"
        "sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules[name].__getattr__ = lambda attribute: None\n"
    )
    return str(folder)


@pytest.mark.feature("Engine", "LLaVA, with the plugin installed", how="it answers as without the plugin", slow=True)
def test_the_plugin_changes_nothing(llava, import_path):
    with_plugin, without = (_answer(llava, plugins, import_path) for plugins in ("video_llava", ""))
    assert with_plugin == without
    assert len(with_plugin[1][0]) > 16


def _answer(folder, plugins: str, import_path: str) -> list:
    command = [sys.executable, str(TESTS / "helpers" / "llava_answer.py"), str(folder)]
    environment = {**os.environ, "VLLM_PLUGINS": plugins, "PYTHONPATH": import_path}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stdout[-3000:] + output.stderr[-3000:]
    return json.loads(next(line for line in output.stdout.splitlines() if line.startswith("[[")))
