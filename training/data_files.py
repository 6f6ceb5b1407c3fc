"""Reads training data in the original's format, and says in sentences what is wrong with it.

A file has a JSON list of entries such as

    {"id": "1", "video": "clip.mp4", "conversations": [
        {"from": "human", "value": "<video>\\nWhat happens?"}, {"from": "gpt", "value": "A door opens."}]}

An entry may also have an `image`, several of either as a list, or neither.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_videollava.decoding.errors import shorten
from vllm_videollava.text.placeholders import PLACEHOLDERS, split_placeholders

SPEAKERS = ("human", "gpt")


@dataclass(frozen=True)
class Entry:
    """One conversation.

    Attributes:
        place: its file and number, for sentences.
        media: kind ("image" or "video") and path of each medium, in the order of the placeholders.
        messages: the conversation as chat messages, which end with an answer.
    """

    place: str
    media: tuple[tuple[str, Path], ...]
    messages: tuple[dict[str, Any], ...]


class DataError(ValueError):
    """A sentence about one entry or one file."""


def read_entries(files: Iterable[Path], media_folder: Path) -> tuple[list[Entry], list[str]]:
    """Read files of data.

    Returns:
        The entries that are as they should be, and a sentence about each of the others.
    """
    entries, faults = [], []
    for file in files:
        try:
            values = _read_list(file)
        except DataError as error:
            faults.append(str(error))
            continue
        for number, value in enumerate(values, 1):
            place = f"{file.name}, entry {number}"
            if isinstance(value, dict) and "id" in value:
                place += f" (id {shorten(value['id'])})"
            try:
                entries.append(_read_entry(place, value, media_folder))
            except DataError as error:
                faults.append(f"{place}: {error}")
    return entries, faults


def _read_list(file: Path) -> list[Any]:
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not a file of JSON.") from error
    if not isinstance(values, list) or not values:
        raise DataError(f"{file} has {shorten(values)}; it must have a list of entries.")
    return values


def _read_entry(place: str, value: Any, media_folder: Path) -> Entry:
    if not isinstance(value, dict):
        raise DataError(f"It is {shorten(value)}; it must be an object.")
    files = {kind: _file_names(kind, value.get(kind)) for kind in PLACEHOLDERS}
    messages, kinds = _read_messages(value.get("conversations"))
    for kind, names in files.items():
        asked = kinds.count(kind)
        if asked != len(names):
            given = f"1 {kind} is" if len(names) == 1 else f"{len(names)} {kind}s are"
            raise DataError(f"Its messages have {PLACEHOLDERS[kind]} {_times(asked)}, but {given} given.")
    remaining = {kind: iter(names) for kind, names in files.items()}
    media = tuple((kind, media_folder / next(remaining[kind])) for kind in kinds)
    for kind, path in media:
        if not _is_file(path):
            raise DataError(f"The {kind} {path} does not exist.")
    return Entry(place, media, messages)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # The name is too long, for instance.
    except OSError:
        return False


def _file_names(kind: str, value: Any) -> list[str]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    for name in names:
        if not isinstance(name, str) or not name:
            raise DataError(f"{kind!r} has {shorten(name)}; it must be a path or a list of paths.")
    return names


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _read_messages(conversation: Any) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"'conversations' is {shorten(conversation)}; it must be a list of messages.")
    messages, kinds = [], []
    for index, message in enumerate(conversation):
        text = _read_text(index, message)
        if index % 2:
            messages.append(_answer(index, text))
        else:
            content, of_message = _read_question(index, text)
            messages.append({"role": "user", "content": content})
            kinds += of_message
    if len(messages) % 2:
        raise DataError("It ends with a question; every question needs an answer.")
    return tuple(messages), kinds


def _read_text(index: int, message: Any) -> str:
    speaker, text = (message.get(key) for key in ("from", "value")) if isinstance(message, dict) else (None, None)
    expected = SPEAKERS[index % 2]
    if speaker != expected:
        raise DataError(f"Message {index + 1} is from {shorten(speaker)}; it must be from {expected!r}.")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"The value of message {index + 1} is {shorten(text)}; it must be a text.")
    return text


def _answer(index: int, text: str) -> dict[str, Any]:
    if len(split_placeholders(text)) > 1:
        raise DataError(f"Message {index + 1} is an answer with <image> or <video> in it; only questions have media.")
    return {"role": "assistant", "content": text}


def _read_question(index: int, text: str) -> tuple[list[dict[str, str]], list[str]]:
    """Turn the run of placeholders at the start of a question into parts of a message, and return their kinds too."""
    *before, rest = split_placeholders(text)
    if any(piece.strip() for piece in before[::2]):
        raise DataError(f"Message {index + 1} has <image> or <video> after text; they belong at its start.")
    kinds = [placeholder.strip("<>") for placeholder in before[1::2]]
    text = rest.lstrip() if kinds else rest
    return [*({"type": kind} for kind in kinds), *([{"type": "text", "text": text}] if text else [])], kinds
