"""Builds chat messages with images and videos, as the OpenAI API takes them."""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def media_part(kind: str, url: str) -> dict[str, Any]:
    """Return the part of a message for one image or video.

    Args:
        kind: "image" or "video".
        url: its URL, which may be a data URL.
    """
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def file_url(path: Path) -> str:
    """Return the URL of a local file; the server reads the file if `--allowed-local-media-path` allows it."""
    return path.resolve().as_uri()


def data_url(data: bytes, media_type: str) -> str:
    """Return a data URL, which carries a file's bytes to any server; `media_type` is for example `video/mp4`."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def question(text: str, parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages for a question about media; the media come first, as in training."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
