"""What the engine would die of, or answer others wrongly for, is refused whichever endpoint it comes from."""

import re
from contextlib import nullcontext

import pytest
import torch

from helpers.asking import MAX_MODEL_LEN, picture

PROMPT = {"prompt_token_ids": [1, 257, 6], "multi_modal_data": {"image": picture(1)}}


@pytest.fixture
def ours(renderer):
    """What the renderer gives to the engine for a prompt with an image."""
    from vllm.renderers import TokenizeParams

    (engine_input,) = renderer.render_cmpl([PROMPT], TokenizeParams(MAX_MODEL_LEN))
    return engine_input


def process(renderer, engine_input, request_id="id", **options):
    """As vLLM's engine clients do with what any endpoint has made."""
    from vllm import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    arguments = {name: options.pop(name) for name in ("priority",) if name in options}
    params = SamplingParams(**{"max_tokens": 1, **options})
    processor = InputProcessor(renderer.config, renderer)
    return processor.process_inputs(request_id, engine_input, params, ("generate",), **arguments)


def refused(sentence: str):
    from vllm.exceptions import VLLMValidationError

    return pytest.raises(VLLMValidationError, match=rf"^{re.escape(sentence)}$")


def from_client(ours, data=None, name="pixel_values_images", field=None, called=None) -> dict:
    """Make what vLLM's endpoint /inference/v1/generate makes of tensors and their names, which clients give it."""
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalFieldElem, MultiModalKwargsItem, MultiModalKwargsItems

    (own,) = ours["mm_kwargs"]["image"]
    own = own["pixel_values_images"]
    element = MultiModalFieldElem(data=own.data if data is None else data, field=field or own.field)
    items = MultiModalKwargsItems({"image": [MultiModalKwargsItem({name: element})]})
    hashes = ours["mm_hashes"] if called is None else {"image": [called]}
    return mm_input(ours["prompt_token_ids"], items, hashes, ours["mm_placeholders"])


@pytest.mark.parametrize(
    ("data", "name", "sentence"),
    [
        (
            torch.zeros(3, 112, 112, dtype=torch.uint8),
            "pixel_values_images",
            "An item of modality 'image' is torch.uint8 [3, 112, 112]; it must be torch.uint8 [3, 56, 56].",
        ),
        (
            torch.zeros(3, 56, 56),
            "pixel_values_images",
            "An item of modality 'image' is torch.float32 [3, 56, 56]; it must be torch.uint8 [3, 56, 56].",
        ),
        (
            torch.zeros(8, 3, 56, 56, dtype=torch.uint8),
            "pixel_values_videos",
            "An item of modality 'image' must have pixel_values_images and nothing else.",
        ),
        (
            torch.zeros(1, dtype=torch.int64),
            "address",
            "An item of modality 'image' must have pixel_values_images and nothing else.",
        ),
    ],
)
def test_tensors_of_clients_have_the_models_form(renderer, ours, data, name, sentence):
    with refused(sentence):
        process(renderer, from_client(ours, data, name))


@pytest.mark.parametrize("kind", ["on the CPU", "flat", "shared"])
def test_tensors_of_clients_are_put_together_as_the_models(renderer, ours, kind):
    from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFlatField, MultiModalSharedField

    field = {
        "on the CPU": MultiModalBatchedField(keep_on_cpu=True),
        "flat": MultiModalFlatField(slices=[slice(0, 3)]),
        "shared": MultiModalSharedField(batch_size=1),
    }[kind]
    with refused("An item of modality 'image' must have pixel_values_images and nothing else."):
        process(renderer, from_client(ours, field=field))


def test_an_item_without_pixels_is_refused(renderer, ours):
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems

    items = MultiModalKwargsItems({"image": [None]})
    with refused("An item of modality 'image' must have pixel_values_images and nothing else."):
        process(renderer, mm_input(ours["prompt_token_ids"], items, ours["mm_hashes"], ours["mm_placeholders"]))


def test_tensors_of_clients_are_known_by_their_pixels(renderer, ours):
    """A client could call its own picture by the hash of another's."""

    def name(engine_input) -> str:
        return process(renderer, engine_input).mm_features[0].identifier

    (own,) = ours["mm_hashes"]["image"]
    assert name(ours) == own
    black = torch.zeros(3, 56, 56, dtype=torch.uint8)
    names = [name(from_client(ours, called=own)), name(from_client(ours, black, called=own))]
    assert len({own, *names}) == 3
    assert name(from_client(ours, black, called="other")) == names[1]


def test_a_beam_search_may_hand_on_what_was_rendered(renderer, ours):
    from vllm.inputs import mm_input

    again = mm_input([*ours["prompt_token_ids"], 7], ours["mm_kwargs"], ours["mm_hashes"], ours["mm_placeholders"])
    assert process(renderer, again).mm_features[0].identifier == ours["mm_hashes"]["image"][0]


def test_a_beam_search_may_hand_on_what_lies_in_shared_memory(renderer, monkeypatch):
    """vLLM's cache "shm" gives the engine addresses in the place of pixels."""
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem, MultiModalKwargsItem
    from vllm.renderers import TokenizeParams

    monkeypatch.setattr(renderer._mm_config, "mm_processor_cache_type", "shm")
    (ours,) = renderer.render_cmpl([PROMPT], TokenizeParams(MAX_MODEL_LEN))
    address = MultiModalFieldElem(data=torch.zeros(1, dtype=torch.int64), field=MultiModalBatchedField())
    ours["mm_kwargs"]["image"] = [MultiModalKwargsItem({"address": address})]
    again = mm_input(ours["prompt_token_ids"], ours["mm_kwargs"], ours["mm_hashes"], ours["mm_placeholders"])
    assert process(renderer, again).mm_features[0].identifier == ours["mm_hashes"]["image"][0]


UNSENDABLE = {
    "priority": (2**70, "The field priority has 1180591620717411303424; whole numbers must fit into 64 bits."),
    "request_id": ("a\ud800", r"The field request_id has 'a\ud800', which is not valid Unicode."),
}


@pytest.mark.parametrize("name", UNSENDABLE)
def test_what_cannot_be_sent_is_refused(renderer, ours, name):
    value, sentence = UNSENDABLE[name]
    with refused(sentence):
        process(renderer, from_client(ours), **{name: value})


def test_a_name_of_an_image_that_cannot_be_sent_is_refused(renderer, ours):
    ours["mm_hashes"] = {"image": ["a\ud800"]}
    with refused(r"The hash of an image or a video has 'a\ud800', which is not valid Unicode."):
        process(renderer, ours)


def test_what_tools_add_is_checked_too(renderer, ours):
    """vLLM makes a schema of the tools after it has asked the renderer."""
    from vllm.sampling_params import StructuredOutputsParams

    schema = StructuredOutputsParams(json={"title": 2**70})
    with refused("The field structured_outputs has 1180591620717411303424; whole numbers must fit into 64 bits."):
        process(renderer, ours, structured_outputs=schema)


def test_deep_options_are_refused(renderer, ours):
    """vLLM's own checks, from 0.31 on, have other sentences."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams

    deep = {}
    for _ in range(101):
        deep = {"a": deep}
    with pytest.raises(VLLMValidationError, match=r"nests|nested too deeply"):
        process(renderer, ours, structured_outputs=StructuredOutputsParams(json=deep))
    with pytest.raises(
        VLLMValidationError, match=r"^The field kv_transfer_params is nested too deeply; the limit is 100 levels\.$"
    ):
        process(renderer, ours, extra_args={"kv_transfer_params": {"x": deep}})


LIMITS = {
    "allowed_token_ids": (
        [5] * 1024,
        [5] * 1025,
        "allowed_token_ids has 1025 ids; vLLM's model runner accepts at most 1024.",
    ),
    "bad_words": (
        ["a"] * 9,
        ["ab" * 600, "cd" * 600],
        "bad_words has 2400 tokens; vLLM's model runner accepts at most 1024.",
    ),
    "seed": (2**63 - 1, 2**63, "seed is 9223372036854775808; vLLM's model runner accepts at most 9223372036854775807."),
    "stop_token_ids": (
        list(range(3, 130)),
        list(range(3, 131)),
        "With min_tokens, the request has 129 stop token ids; vLLM's model runner accepts at most 128.",
    ),
    "max_tokens": (
        2**31 - 1 - 18,
        2**31 - 18,
        "The prompt and max_tokens make 2147483648 tokens; vLLM's model runner accepts at most 2147483647.",
    ),
}


@pytest.mark.parametrize("runs_v2", [False, True])
@pytest.mark.parametrize("name", LIMITS)
def test_what_the_second_model_runner_has_no_room_for_is_refused_there(renderer, ours, monkeypatch, name, runs_v2):
    """It raises, or loses numbers, in the engine's own step."""
    monkeypatch.setattr(renderer, "_runs_v2", runs_v2)
    fits, too_much, sentence = LIMITS[name]
    others = {"min_tokens": 1} if name == "stop_token_ids" else {}
    assert len(ours["prompt_token_ids"]) == 18
    process(renderer, ours, **{name: fits}, **others)
    with refused(sentence) if runs_v2 else nullcontext():
        process(renderer, ours, **{name: too_much}, **others)


def test_log_probabilities_of_chosen_tokens_need_the_second_model_runner(renderer, ours, monkeypatch):
    """The first would give those of one request to all that it answers at the same time."""
    with refused("logprob_token_ids and /generative_scoring need vLLM's model runner V2, which is not in use."):
        process(renderer, ours, logprobs=1, logprob_token_ids=[7])
    monkeypatch.setattr(renderer, "_runs_v2", True)
    process(renderer, ours, logprobs=1, logprob_token_ids=[7])
