"""Loading: every format's names, towers from elsewhere, and no tensor missing, surplus or misshapen."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from helpers.checkpoints import change_config, change_tensors, copy_checkpoint, write_transformers_checkpoint
from helpers.loading import model_loading
from helpers.random_checkpoint import write_checkpoint
from helpers.sources import move_towers_away, to_bin
from original.model import OriginalVideoLlava


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    with model_loading(tmp_path_factory.mktemp("rendezvous") / "file") as load:
        yield load


@pytest.fixture
def copy(checkpoint, tmp_path):
    return copy_checkpoint(checkpoint, tmp_path / "copy")


@torch.inference_mode()
def assert_encodes_like(model, reference) -> None:
    """Compare what the towers and the projector make of random pixels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 56, 56), generator=generator, dtype=torch.uint8)
    video = torch.randint(0, 256, (3, 8, 3, 56, 56), generator=generator, dtype=torch.uint8)
    ours = model.embed_multimodal(pixel_values_images=image, pixel_values_videos=video)
    for embedding, pixels in zip(ours, [*image, *video], strict=True):
        torch.testing.assert_close(embedding, reference.encode(pixels.float()), atol=1e-4, rtol=1e-4)


def add_buffers(folder) -> None:
    """Old versions of transformers stored these."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.image_tower.image_tower.embeddings.position_ids"] = torch.arange(17)[None]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)

    change_tensors(folder, add)


def drop_what_is_never_computed(folder) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if "_tower" in name and ("encoder.layers.2." in name or "post_layernorm" in name):
                del tensors[name]

    change_tensors(folder, drop)


LAYOUTS = {
    "safetensors": lambda folder: None,
    "bin": to_bin,
    "towers elsewhere": move_towers_away,
    "stored buffers": add_buffers,
    "unused layers absent": drop_what_is_never_computed,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_checkpoint_loads(load, checkpoint, copy, layout):
    LAYOUTS[layout](copy)
    assert_encodes_like(load(copy), OriginalVideoLlava.from_folder(checkpoint))


@pytest.mark.parametrize("limits", [{"image": 0}, {"image": 0, "video": 0}])
def test_towers_that_no_request_may_use_are_left_out(load, checkpoint, limits):
    model = load(checkpoint, limit_mm_per_prompt=limits)
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert "language_model" in parts
    assert parts.isdisjoint(f"{modality}_tower" for modality in limits)
    assert ("multi_modal_projector" in parts) == ("video" not in limits)


def test_a_tower_that_is_left_out_is_not_fetched(load, copy):
    move_towers_away(copy)
    (copy / "LanguageBind_Image" / "pytorch_model.bin").unlink()
    load(copy, limit_mm_per_prompt={"image": 0})


@pytest.mark.parametrize("projector", ["linear", "mlp1x_gelu", "mlp3x_gelu"])
def test_every_projector_loads(load, tmp_path, projector):
    folder = write_checkpoint(tmp_path / "checkpoint", mm_projector_type=projector)
    assert_encodes_like(load(folder), OriginalVideoLlava.from_folder(folder))


EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tie_embeddings(folder, stored: list[str]) -> torch.Tensor:
    """Make the embeddings the head as well, stored under some names only; return them."""
    embeddings = load_file(folder / "model.safetensors")[EMBEDDINGS]

    def tie(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[EMBEDDINGS], tensors[HEAD]
        tensors.update({name: embeddings.clone() for name in stored})

    change_tensors(change_config(folder, tie_word_embeddings=True), tie)
    return embeddings


def assert_embeds_with(model, embeddings: torch.Tensor, head: torch.Tensor) -> None:
    language_model = model.language_model
    for ours, expected in ((language_model.model.embed_tokens, embeddings), (language_model.lm_head, head)):
        torch.testing.assert_close(ours.weight[: len(expected)], expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("layout", "stored"),
    [
        ("safetensors", [EMBEDDINGS]),
        ("safetensors", [EMBEDDINGS, HEAD]),
        ("bin", [EMBEDDINGS]),
        ("bin", [HEAD]),
        ("bin", [EMBEDDINGS, HEAD]),
    ],
)
def test_tied_embeddings_load(load, copy, layout, stored):
    embeddings = tie_embeddings(copy, stored)
    LAYOUTS[layout](copy)
    assert_embeds_with(load(copy), embeddings, embeddings)


def test_a_head_that_differs_is_used_where_vllm_can_see_it_in_time(load, copy):
    tensors = load_file(copy / "model.safetensors")
    model = load(change_config(copy, tie_word_embeddings=True))
    assert_embeds_with(model, tensors[EMBEDDINGS], tensors[HEAD])


def test_a_head_that_differs_is_named_elsewhere(load, copy):
    to_bin(change_config(copy, tie_word_embeddings=True))
    with pytest.raises(ValueError, match=r"differs from the embeddings, though tie_word_embeddings is true"):
        load(copy)


def test_tied_embeddings_that_are_missing_are_named(load, copy):
    change_tensors(
        change_config(copy, tie_word_embeddings=True), lambda tensors: (tensors.pop(EMBEDDINGS), tensors.pop(HEAD))
    )
    with pytest.raises(ValueError, match=r"lacks tensors that this model needs: \S+embed_tokens.weight\."):
        load(copy)


def test_a_head_of_its_own_is_not_taken_from_the_embeddings(load, copy):
    change_tensors(copy, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ValueError, match=r"lacks tensors that this model needs: \S+lm_head.weight\."):
        load(copy)


@pytest.mark.parametrize("outer", [True, False])
def test_tied_embeddings_of_transformers_format(load, checkpoint, tmp_path, outer):
    folder = write_transformers_checkpoint(tmp_path / "transformers", checkpoint)
    embeddings = load_file(folder / "model.safetensors")["language_model.model.embed_tokens.weight"]
    change_tensors(folder, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    values = json.loads((folder / "config.json").read_text())
    if outer:
        values["tie_word_embeddings"] = True
    else:
        # As before transformers 5.
        del values["tie_word_embeddings"]
        values["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(values))
    assert_embeds_with(load(folder), embeddings, embeddings)


TENSORS = (
    "model.video_tower.video_tower.encoder.layers.1.temporal_embedding",
    "model.image_tower.image_tower.encoder.layers.0.self_attn.k_proj.weight",
    "model.image_tower.image_tower.encoder.layers.0.mlp.fc1.weight",
    "model.mm_projector.2.bias",
    "model.embed_tokens.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "model.norm.weight",
)


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_tensor_is_named(load, copy, name):
    change_tensors(copy, lambda tensors: tensors.pop(name))
    last_part = re.sub(r".*(layers|image_tower|video_tower|mm_projector|embed_tokens|norm)\b", "", name)
    with pytest.raises(ValueError, match=r"lacks tensors.*" + re.escape(last_part)):
        load(copy)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("factor", [0.5, 2], ids=["smaller", "larger"])
def test_a_misshapen_tensor_is_named(load, copy, name, factor):
    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        *rest, size = tensors[name].shape
        tensors[name] = torch.ones(*rest, int(size * factor))

    change_tensors(copy, reshape)
    with pytest.raises(ValueError, match=re.escape(f"tensor {name} has shape")):
        load(copy)


def test_a_tensor_with_too_many_rows_is_named(load, copy):
    name = "model.layers.0.self_attn.q_proj.weight"
    change_tensors(copy, lambda tensors: tensors.update({name: tensors[name].repeat(2, 1)}))
    with pytest.raises(ValueError, match=re.escape(f"tensor {name} has shape")):
        load(copy)


SURPLUS = (
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.7.mlp.up_proj.weight",
    "model.image_tower.image_tower.encoder.layers.0.temporal_attn.q_proj.weight",
    "model.mm_projector.4.weight",
    "something.new",
)


@pytest.mark.parametrize("name", SURPLUS)
def test_a_surplus_tensor_is_named(load, copy, name):
    change_tensors(copy, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    with pytest.raises(ValueError, match=r"does not use.*" + re.escape(name)):
        load(copy)


@pytest.mark.parametrize("options", [{}, {"load_format": "dummy"}])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.language_model.norm.weight"])
def test_weights_may_come_part_by_part(load, checkpoint, options, name):
    model = load(checkpoint, **options)
    weight = torch.full((128,), 3.0)
    assert model.load_weights([(name, weight)]) == {"language_model.model.norm.weight"}
    torch.testing.assert_close(model.language_model.model.norm.weight.data, weight, atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"tensors that this model does not use: model\.depth"):
        model.load_weights([("model.depth", weight)])
