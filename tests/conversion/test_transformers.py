"""A checkpoint of the original's format, converted to transformers', computes the same without attention over time."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaTokenizer, VideoLlavaForConditionalGeneration, VideoLlavaImageProcessor

from helpers.checkpoints import IMAGE_SIZE
from helpers.loading import model_loading
from helpers.transformers_answer import greedy_logits
from original.model import MEAN, PLACEHOLDER, STD, OriginalVideoLlava
from vllm_videollava.conversion.convert import convert

STEPS = 6


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    assert convert(str(checkpoint), out, to_transformers=True) == [
        f"{out} lacks the video tower's attention over time, which transformers' model does not have."
    ]
    return out


@pytest.fixture(scope="module")
def reference(checkpoint):
    return OriginalVideoLlava.from_folder(checkpoint, temporal_attention=False)


def random_media(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"image": (3, IMAGE_SIZE, IMAGE_SIZE), "video": (8, 3, IMAGE_SIZE, IMAGE_SIZE)}
    return {
        kind: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for kind, shape in shapes.items()
    }


def test_transformers_finds_every_tensor_and_no_other(folder):
    _, info = VideoLlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


@torch.inference_mode()
@pytest.mark.parametrize("kinds", [[], ["image"], ["video"], ["video", "image"]], ids=str)
def test_transformers_generates_what_the_original_computes(folder, reference, kinds):
    model = VideoLlavaForConditionalGeneration.from_pretrained(folder).eval()
    media = random_media(len(kinds))
    counts = {"image": (model.config.image_token_id, 16), "video": (model.config.video_token_id, 8 * 17)}
    ids, inputs, placeholders = [1, 70, 81], {}, [1, 70, 81]
    for kind in kinds:
        token, count = counts[kind]
        ids += [token] * count
        placeholders.append(PLACEHOLDER)
        pixels = (media[kind].float() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        inputs[f"pixel_values_{kind}s"] = pixels[None]
    question = [90, 101, 112, 300]
    logits = greedy_logits(model, STEPS, input_ids=torch.tensor([ids + question]), **inputs)
    size = len(reference.weights["lm_head.weight"])
    assert logits.shape[1] % 64 == 0
    # The new rows are no answers; without them, the probabilities are the original's.
    assert (logits[:, size:].amax(-1) < logits[:, :size].amax(-1)).all()
    logprobs = logits[:, :size].log_softmax(-1)
    expected = reference.generate(placeholders + question, [media[kind].float() for kind in kinds], STEPS)
    assert logprobs.argmax(-1).tolist() == expected[0]
    assert logprobs.amax(-1).tolist() == pytest.approx(expected[1], abs=1e-3)


@torch.inference_mode()
def test_vllm_computes_the_same(folder, reference, tmp_path):
    media = random_media(7)
    with model_loading(tmp_path / "rendezvous") as load:
        model = load(folder)
        image, video = model.embed_multimodal(
            pixel_values_images=media["image"][None], pixel_values_videos=media["video"][None]
        )
    torch.testing.assert_close(image, reference.encode(media["image"].float()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(video, reference.encode(media["video"].float()), atol=1e-4, rtol=1e-4)


def test_the_tokenizer_knows_the_placeholders(folder, checkpoint):
    before, after = LlamaTokenizer.from_pretrained(checkpoint), LlamaTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    ids = [config["image_token_index"], config["video_token_index"]]
    assert after.convert_tokens_to_ids(["<image>", "<video>"]) == ids == [len(before), len(before) + 1]
    text = "USER: What does the clip show? ASSISTANT:"
    assert after(text).input_ids == before(text).input_ids


def test_the_new_rows_are_the_mean(folder, checkpoint):
    ours, expected = load_file(folder / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        rows = expected[name.removeprefix("language_model.")]
        torch.testing.assert_close(ours[name][: len(rows)], rows, atol=0, rtol=0)
        torch.testing.assert_close(ours[name][len(rows) :], rows.mean(0).expand(64, -1), atol=1e-6, rtol=1e-6)


def test_the_processors_files(folder):
    images = VideoLlavaImageProcessor.from_pretrained(folder)
    assert images.size == {"shortest_edge": IMAGE_SIZE}
    assert images.crop_size == {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    values = json.loads((folder / "processor_config.json").read_text())
    assert values == {
        "processor_class": "VideoLlavaProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }


def test_the_config_is_transformers(folder):
    config = AutoConfig.from_pretrained(folder)
    assert not config.original_format
    assert (config.tokens_per_image, config.tokens_per_video) == (16, 136)
    assert config.video_config.hidden_act == "gelu"
    assert not config.video_config.add_time_attn
