"""The conversation `llava_v1`: its chat template, and functions that prepare messages and check prompts."""

import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from vllm_videollava.text.placeholders import PLACEHOLDERS, SENTINEL, escape, show_placeholders, split_placeholders

CHAT_TEMPLATE = Path(__file__).with_name("llava_v1.jinja").read_text()
SYSTEM_PROMPT = re.search(r'system = namespace\(text="(.+?)"\)', CHAT_TEMPLATE)[1]
"""The beginning of a conversation without a system message."""

# The key of a part's text, by the part's type.
_TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "tool_reference": "name",
}


def prepare_conversation(conversation: Sequence[Any]) -> list[Any]:
    """Prepare one conversation or several for a chat template.

    In the result, each part has the type "text", "image" or "video", and
    placeholders in texts are escaped, because only parts are media. There is
    one exception: a run of placeholders at the very beginning or the very end
    of a message's texts is dropped if it names exactly the message's images and
    videos, because it stands for those parts, as in LLaVA's datasets.

    Raises:
        ValueError: a part is neither a text nor an image nor a video.
    """
    if conversation and isinstance(conversation[0], (list, tuple)):
        return [prepare_conversation(one) for one in conversation]
    return [_prepare_message(message) if isinstance(message, Mapping) else message for message in conversation]


def _prepare_message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        content = show_placeholders(escape(_drop_run_after_sentinels(content)))
    else:
        content = escape_all(_drop_run([_normal_part(part) for part in content or ()]))
    others = {key: value for key, value in message.items() if key != "content"}
    return {**escape_all(others), "content": content}


def escape_all(value: Any) -> Any:
    """Escape the placeholders in all texts of a JSON value, keys included."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {escape_all(key): escape_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape_all(item) for item in value]
    return value


def _normal_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    # vLLM also accepts {"image_url": ...} without a type.
    for kind in [part["type"]] if "type" in part else part:
        if kind in _TEXT_KEYS:
            return {**part, "type": "text", "text": part.get(_TEXT_KEYS[kind]) or ""}
        for modality in PLACEHOLDERS:
            if modality in str(kind):
                return {**part, "type": modality}
    if part.get("type") is None:
        raise ValueError("A part has no type; it must be text, image or video.")
    raise ValueError(f"A part has the type {reprlib.repr(part.get('type'))}; it must be text, image or video.")


def _drop_run(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    media = Counter(PLACEHOLDERS[part["type"]] for part in parts if part["type"] in PLACEHOLDERS)
    texts = [index for index, part in enumerate(parts) if part["type"] == "text"]
    if not media or not texts:
        return parts
    for index, direction in ((texts[0], 1), (texts[-1], -1)):
        rest = _without_run(parts[index]["text"], media, direction)
        if rest is not None:
            return parts[:index] + ([{**parts[index], "text": rest}] if rest else []) + parts[index + 1 :]
    return parts


def _drop_run_after_sentinels(content: str) -> str:
    """Do the same as `_drop_run` for templates that take only strings: vLLM has put sentinels before the text."""
    sentinels = list(SENTINEL.finditer(content))
    if not sentinels:
        return content
    media = Counter(show_placeholders(match[0]) for match in sentinels)
    end = sentinels[-1].end()
    for direction in (1, -1):
        rest = _without_run(content[end:], media, direction)
        if rest is not None:
            return content[:end] + ("\n" + rest.removeprefix("\n") if rest else "")
    return content


def _without_run(text: str, media: Counter[str], direction: int) -> str | None:
    """Remove the run of placeholders at the beginning of a text or, in direction -1, at its end.

    Returns:
        The rest of the text, or None if the run does not name exactly these media.
    """
    pieces = split_placeholders(text)[::direction]
    num_blank = len(list(takewhile(lambda piece: not piece.strip(), pieces[::2])))
    if Counter(pieces[1 : 2 * num_blank : 2]) != media:
        return None
    rest = "".join(pieces[2 * num_blank :][::direction])
    return rest.lstrip() if direction == 1 else rest.rstrip()


def check_placeholders(
    token_ids: Sequence[int], placeholder_ids: Mapping[str, int], media_counts: Mapping[str, int]
) -> None:
    """Check that a prompt has one placeholder for each image and each video.

    Raises:
        ValueError: the prompt has more or fewer placeholders.
    """
    for modality, token_id in placeholder_ids.items():
        given, asked = media_counts.get(modality, 0), token_ids.count(token_id)
        if given != asked:
            placeholder = PLACEHOLDERS[modality]
            placeholders, items = f"{placeholder} placeholder{'s' * (asked != 1)}", f"{modality}{'s' * (given != 1)}"
            raise ValueError(
                f"The prompt has {asked} {placeholders} for {given} {items}; write one for each {modality}, "
                f"and {escape(placeholder)} where you mean the characters {placeholder}."
            )


def collapse_placeholders(
    token_ids: Sequence[int],
    placeholder_ids: Mapping[str, int],
    media_counts: Mapping[str, int],
    tokens_per_item: Mapping[str, int],
) -> list[int]:
    """Reduce an expanded prompt, as trainers write it, to one placeholder for each item.

    A prompt is expanded if it has the placeholder once for each token of each
    item. It is left unchanged if the number of placeholders is another, or if
    those of an item are not in one run.
    """
    token_ids = list(token_ids)
    for modality, count in media_counts.items():
        token_id, length = placeholder_ids.get(modality), tokens_per_item.get(modality)
        if count and token_ids.count(token_id) == count * length:
            token_ids = _collapse_runs(token_ids, token_id, length)
    return token_ids


def _collapse_runs(token_ids: list[int], token_id: int, length: int) -> list[int]:
    runs = [(value, sum(1 for _ in run)) for value, run in groupby(token_ids)]
    if any(value == token_id and number % length for value, number in runs):
        return token_ids
    collapsed = []
    for value, number in runs:
        collapsed += [value] * (number // length if value == token_id else number)
    return collapsed
