"""The last check before a request leaves for the engine, which serves everybody and must not die of one request."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vllm_videollava.config import VideoLlavaConfig
from vllm_videollava.request_values import check_text


def check_engine_input(engine_input: Mapping[str, Any], config: VideoLlavaConfig, *, shares_memory: bool) -> None:
    """Check the form of everything that a request gives to the engine, whatever checked it before.

    Args:
        engine_input: what vLLM's renderer has made, of type "token", "multimodal" or "embeds".
        shares_memory: items may be addresses in memory that is shared with the engine, as in vLLM's cache "shm".

    Raises:
        ValueError: something has another shape, dtype or number than the model takes.
    """
    token_ids = engine_input.get("prompt_token_ids") or ()
    _check_token_ids(token_ids, config.text_config.vocab_size)
    check_text("The field cache_salt", engine_input.get("cache_salt"))
    if engine_input["type"] == "embeds":
        _check_embeds(engine_input["prompt_embeds"], config.text_config.hidden_size)
    if engine_input["type"] == "multimodal":
        _check_media(engine_input, len(token_ids), config, shares_memory)


def _check_token_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        raise ValueError(f"The prompt has token ids that the model does not; they go from 0 to {vocab_size - 1}.")


def _check_embeds(embeds: torch.Tensor, hidden_size: int) -> None:
    if embeds.ndim != 2 or not len(embeds) or embeds.shape[1] != hidden_size or not embeds.is_floating_point():
        raise ValueError(
            f"prompt_embeds is {embeds.dtype} {list(embeds.shape)}; floating point [tokens, {hidden_size}] is needed."
        )


def _check_media(
    engine_input: Mapping[str, Any], num_tokens: int, config: VideoLlavaConfig, shares_memory: bool
) -> None:
    items, hashes, places = (engine_input[name] for name in ("mm_kwargs", "mm_hashes", "mm_placeholders"))
    image_size, video_size = config.image_config.image_size, config.video_config.image_size
    forms = {
        "image": ("pixel_values_images", (3, image_size, image_size), config.tokens_per_image),
        "video": ("pixel_values_videos", (config.num_frames, 3, video_size, video_size), config.tokens_per_video),
    }
    ends = []
    for modality in {*items, *hashes, *places}:
        if modality not in forms:
            raise ValueError(f"The model takes images and videos, but the request has {modality!r}.")
        name, shape, length = forms[modality]
        # Where there are no items, some of the three do not know the modality.
        own_items, own_hashes, own_places = (one.get(modality, ()) for one in (items, hashes, places))
        if not len(own_items) == len(own_hashes) == len(own_places):
            raise ValueError(f"The request's {modality} items and their places in the prompt differ in number.")
        for item in own_items:
            if not (shares_memory and item and "address" in item):
                _check_item(modality, item, name, shape)
        if any(place.length != length for place in own_places):
            raise ValueError(f"The {modality} items take other numbers of tokens than the model's {length}.")
        ends += [(place.offset, place.offset + place.length) for place in own_places]
    ends.sort()
    starts = [start for start, _ in ends[1:]]
    if any(start < end for start, (_, end) in zip(starts, ends, strict=False)) or (
        ends and (ends[0][0] < 0 or ends[-1][1] > num_tokens)
    ):
        raise ValueError("The images and videos of the request overlap, or lie outside of its prompt.")


def _check_item(modality: str, item: Mapping[str, Any] | None, name: str, shape: tuple[int, ...]) -> None:
    data = {key: element.data for key, element in (item or {}).items()}
    pixels = data.get(name)
    if len(data) != 1 or not isinstance(pixels, torch.Tensor):
        raise ValueError(f"An item of modality {modality!r} has something else than its pixels.")
    if pixels.dtype != torch.uint8 or pixels.shape != shape:
        raise ValueError(f"Pixels of modality {modality!r} are {pixels.dtype} {list(pixels.shape)}, not {list(shape)}.")
