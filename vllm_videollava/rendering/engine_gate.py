"""The last check before the engine. It serves everybody, so no single request may kill it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from vllm import SamplingParams, envs
from vllm.config.multimodal import MultiModalConfig
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalKwargsItem
from vllm.utils import length_from_prompt_token_ids_or_embeds
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.worker.gpu.sample import logit_bias as runner_v2

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.decoding.errors import shorten
from vllm_videollava.decoding.pixel_format import INPUT_NAMES
from vllm_videollava.media.embeddings import EMBEDDING_NAMES, EmbeddingFormat
from vllm_videollava.media.python_media import check_modalities
from vllm_videollava.rendering.request_values import check_value
from vllm_videollava.text.unicode import check_text

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

# Fields of an engine request that `check_engine_input` has checked.
_CHECKED_BEFORE = ("prompt_token_ids", "prompt_embeds", "prompt_is_token_ids", "mm_features")


InputFormat = tuple[torch.dtype, Sequence[tuple[int, ...]]]
"""The dtype and the shapes of one item of an input of the model."""
InputFormats = Mapping[str, Mapping[str, InputFormat]]
"""What an item may have, by modality and by the input's name."""


def input_formats(
    config: VideoLlavaConfig, mm_config: MultiModalConfig, embeddings: EmbeddingFormat | None
) -> InputFormats:
    """Return what an engine takes: pixels, unless it was told to take none, and embeddings if it has a form of them."""
    formats: dict[str, dict[str, InputFormat]] = {modality: {} for modality in INPUT_NAMES}
    for modality, of_modality in formats.items():
        # vLLM loads no tower then.
        if mm_config.get_limit_per_prompt(modality):
            of_modality[INPUT_NAMES[modality]] = torch.uint8, [config.pixel_format.input_shapes[modality]]
        if embeddings:
            of_modality[EMBEDDING_NAMES[modality]] = embeddings.dtype, embeddings.shapes[modality]
    return formats


def check_engine_input(
    engine_input: Mapping[str, Any], config: VideoLlavaConfig, inputs: InputFormats, *, shares_memory: bool
) -> None:
    """Check the form of everything that a request gives to the engine, whether or not it was checked before.

    Args:
        engine_input: the result of vLLM's renderer, of type "token", "multimodal" or "embeds".
        inputs: what an item may have, by `input_formats`.
        shares_memory: whether items may be addresses in memory shared with the engine, as in vLLM's cache "shm".

    Raises:
        ValueError: a shape, a dtype or a number of items is not what the model takes.
    """
    token_ids = engine_input.get("prompt_token_ids") or ()
    _check_token_ids(token_ids, config.text_config.vocab_size)
    check_text("The field cache_salt", engine_input.get("cache_salt"))
    if engine_input["type"] == "embeds":
        _check_embeds(engine_input["prompt_embeds"], config.text_config.hidden_size)
    if engine_input["type"] == "multimodal":
        _check_media(engine_input, len(token_ids), config, inputs, shares_memory)


def hash_pixels(items: Mapping[str, Sequence[MultiModalKwargsItem]], algorithm: str) -> dict[str, list[str]]:
    """Return hashes by modality for items that have passed `check_engine_input`; `algorithm` is one of vLLM's."""
    return {
        modality: [f"{modality}-{MultiModalHasher.hash_kwargs(algorithm, **item.get_data())}" for item in own_items]
        for modality, own_items in items.items()
    }


def check_engine_request(request: EngineCoreRequest, *, runs_v2: bool) -> None:
    """Check the options that go with a prompt, as vLLM sends them to the engine.

    Args:
        runs_v2: whether the engine uses vLLM's second model runner. Nothing else checks that runner's limits, and
            its processes die when a request exceeds them. The first runner would give the log-probabilities of
            `logprob_token_ids` to every answer of a step.

    Raises:
        ValueError: an option cannot be sent, or the engine cannot do what it says.
    """
    options = {name: getattr(request, name) for name in request.__struct_fields__ if name not in _CHECKED_BEFORE}
    if (params := options.pop("sampling_params")) is not None:
        options |= msgspec.structs.asdict(params)
        options |= {shorten(name)[1:-1]: value for name, value in (options.pop("extra_args") or {}).items()}
    for name, value in options.items():
        check_value(f"The field {name}", value)
    for feature in request.mm_features or ():
        check_text("The hash of an image or a video", feature.identifier)
    if params is not None and runs_v2:
        prompt_length = length_from_prompt_token_ids_or_embeds(request.prompt_token_ids, request.prompt_embeds)
        _check_limits(params, prompt_length)
    elif params is not None and params.logprob_token_ids:
        raise ValueError("logprob_token_ids and /generative_scoring need vLLM's model runner V2, which is not in use.")


def _check_limits(params: SamplingParams, prompt_length: int) -> None:
    """Check a request against the fixed sizes of vLLM's second model runner."""
    num_stop_ids = len(params.all_stop_token_ids) if params.min_tokens else 0
    bad_words = params.bad_words_token_ids or ()
    for subject, number, limit in (
        ("allowed_token_ids has {} ids", len(params.allowed_token_ids or ()), runner_v2.MAX_NUM_ALLOWED_TOKEN_IDS),
        ("logit_bias has {} ids", len(params.logit_bias or ()), runner_v2.MAX_NUM_LOGIT_BIAS_TOKENS),
        ("With min_tokens, the request has {} stop token ids", num_stop_ids, runner_v2.MAX_NUM_STOP_TOKEN_IDS),
        ("bad_words has {} tokens", sum(map(len, bad_words)), envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS),
        ("The prompt and max_tokens make {} tokens", prompt_length + (params.max_tokens or 0), INT32_MAX),
        ("seed is {}", params.seed or 0, INT64_MAX),
    ):
        if number > limit:
            raise ValueError(f"{subject.format(number)}; vLLM's model runner accepts at most {limit}.")


def _check_token_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        unknown = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise ValueError(
            f"The prompt has the token id {shorten(unknown)}; the model's token ids are 0 to {vocab_size - 1}."
        )


def _check_embeds(embeds: torch.Tensor, hidden_size: int) -> None:
    if embeds.ndim != 2 or not len(embeds) or embeds.shape[1] != hidden_size or not embeds.is_floating_point():
        raise ValueError(
            f"prompt_embeds is {embeds.dtype} {list(embeds.shape)}; it must be floating point [tokens, {hidden_size}]."
        )


def _check_media(
    engine_input: Mapping[str, Any],
    num_tokens: int,
    config: VideoLlavaConfig,
    inputs: InputFormats,
    shares_memory: bool,
) -> None:
    items, hashes, places = (engine_input[name] for name in ("mm_kwargs", "mm_hashes", "mm_placeholders"))
    ends = []
    check_modalities(modalities := {*items, *hashes, *places})
    for modality in modalities:
        length = config.tokens_per_item[modality]
        # If there are no items, some of the three mappings lack the modality.
        own_items, own_hashes, own_places = (one.get(modality, ()) for one in (items, hashes, places))
        if len(set(numbers := [len(one) for one in (own_items, own_hashes, own_places)])) > 1:
            counts = "{} items, {} hashes and {} places in the prompt".format(*numbers)
            raise ValueError(f"For {modality!r}, the request has {counts}; the three numbers must be equal.")
        for item in own_items:
            if not (shares_memory and item and "address" in item):
                _check_item(modality, item, inputs[modality])
        if others := [place.length for place in own_places if place.length != length]:
            raise ValueError(
                f"Each {modality} takes {length} tokens, but the request reserves {others[0]} tokens for one of them."
            )
        ends += [(place.offset, place.offset + place.length) for place in own_places]
    ends.sort()
    starts = [start for start, _ in ends[1:]]
    if any(start < end for start, (_, end) in zip(starts, ends, strict=False)) or (
        ends and (ends[0][0] < 0 or ends[-1][1] > num_tokens)
    ):
        raise ValueError("Images or videos of the request overlap in its prompt, or lie outside it.")


def _check_item(modality: str, item: Mapping[str, Any] | None, inputs: Mapping[str, InputFormat]) -> None:
    if not inputs:
        raise ValueError(f"The server takes no {modality}s.")
    name = next(iter(item or ()), None)
    element = item[name] if name in inputs else None
    tensor = element.data if element else None
    if len(item or ()) != 1 or not isinstance(tensor, torch.Tensor) or element.field != MultiModalBatchedField():
        raise ValueError(f"An item of modality {modality!r} must have {' or '.join(inputs)} and nothing else.")
    dtype, shapes = inputs[name]
    if tensor.dtype != dtype or tuple(tensor.shape) not in shapes:
        known = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"An item of modality {modality!r} is {tensor.dtype} {list(tensor.shape)}; it must be {dtype} {known}."
        )
    if dtype.is_floating_point and not tensor.isfinite().all():
        raise ValueError(f"An item of modality {modality!r} has infinite or NaN values.")
