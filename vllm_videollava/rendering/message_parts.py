"""Checks chat messages before anything is fetched, and finds the images and videos among their parts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_videollava.decoding.errors import MediaError

MODALITIES = ("image", "video")


def count_parts(messages: Sequence[Any]) -> Counter[str]:
    """Return the number of parts that have an image or a video, by modality."""
    return Counter(modality for _, _, part in _parts(messages) if (modality := _modality(part)))


def check_messages(messages: Sequence[Any], *, takes_embeddings: bool) -> None:
    """Refuse messages for which vLLM's own error would talk about its flags and internal names.

    Raises:
        MediaError: a part has embeddings, but none are accepted, they are no string, or others are sent as files; or it
            has neither an address nor an id.
        ValueError: a message has no role; some items of /v1/responses have none.
    """
    for number, message in enumerate(messages, 1):
        if isinstance(message, dict) and "role" not in message:
            raise ValueError(f"Message {number} has no role.")
    are_embeddings: dict[str, bool] = {}
    for message, number, part in _parts(messages):
        modality = _modality(part)
        if modality is None:
            continue
        place = f"Message {message}, part {number}"
        has_embeddings = (kind := _kind(part)).endswith("_embeds")
        if has_embeddings and not takes_embeddings:
            raise MediaError(
                f"{place}: The server takes no embeddings, because it runs without --enable-mm-embeds; send the "
                f"{modality} itself."
            )
        if has_embeddings and not isinstance(part.get(kind), str):
            raise MediaError(f"{place}: The embeddings of the {modality} must be one string, the base64 of a tensor.")
        if are_embeddings.setdefault(modality, has_embeddings) != has_embeddings:
            raise MediaError(f"{place}: A request has either {modality}s or their embeddings, but this one has both.")
        if kind.endswith("_url") and not any(_urls(part)):
            raise MediaError(f"{place}: The {modality} has no address.")


def find_part(messages: Sequence[Any], url: str) -> tuple[int, int] | None:
    """Return the numbers, from 1, of the first message and its part that contain this URL, or None."""
    places = ((message, number) for message, number, part in _parts(messages) if _modality(part) and url in _urls(part))
    return next(places, None)


def _parts(messages: Sequence[Any]) -> Iterator[tuple[int, int, Any]]:
    """Yield the number of the message, the number of the part, and the part; both count from 1."""
    for message_number, message in enumerate(messages, 1):
        content = message.get("content") if isinstance(message, dict) else None
        for part_number, part in enumerate(content if isinstance(content, list) else (), 1):
            yield message_number, part_number, part


def _modality(part: Any) -> str | None:
    kind = _kind(part)
    return next((modality for modality in MODALITIES if modality in kind), None)


def _kind(part: Any) -> str:
    # As in vLLM: the type decides or, if there is none, the part's only key.
    return str(part.get("type") or next(iter(part), "")) if isinstance(part, dict) else ""


def _urls(part: Any) -> list[Any]:
    """Return the URL and the id in a part, which is {"video_url": {"url": ...}} or {"video_url": ...}."""
    values = [value for key, value in part.items() if key != "type"]
    return [value.get("url") if isinstance(value, dict) else value for value in values]
