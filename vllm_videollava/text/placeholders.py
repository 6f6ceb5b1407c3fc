"""The placeholders of images and videos in a text, and how to write them as plain characters.

`<image>` stands for an image and `<video>` for a video. `<!image>` is the seven
characters `<image>`, `<!!image>` the eight characters `<!image>`, and so on.
"""

import re
import secrets

PLACEHOLDERS = {"image": "<image>", "video": "<video>"}

_ANY = "(?:image|video)>"
_RESERVED = re.compile(f"<(?=!*{_ANY})")
_ESCAPED = re.compile(f"<!(?=!*{_ANY})")
_PLACEHOLDER = re.compile(f"(<{_ANY})")

# No client can know these, because they change with each process.
_SENTINELS = {modality: f"<{modality} {secrets.token_hex(8)}>" for modality in PLACEHOLDERS}
SENTINEL = re.compile("|".join(_SENTINELS.values()))


def escape(text: str) -> str:
    """Return the text that means the characters of `text`."""
    return _RESERVED.sub("<!", text)


def unescape(text: str) -> str:
    """Return the characters that a text without placeholders means."""
    return _ESCAPED.sub("<", text)


def is_escaped(text: str) -> bool:
    """Tell whether some characters of a text are escaped."""
    return _ESCAPED.search(text) is not None


def split_placeholders(text: str) -> list[str]:
    """Split a text into texts and placeholders, in turn; the first and the last are texts."""
    return _PLACEHOLDER.split(text)


def sentinel(modality: str) -> str | None:
    """Return a placeholder that no client can write, or None if the model does not take this modality."""
    return _SENTINELS.get(modality)


def hide_placeholders(text: str) -> str:
    """Replace placeholders by sentinels."""
    return _PLACEHOLDER.sub(lambda match: _SENTINELS[match[0].strip("<>")], text)


def show_placeholders(text: str) -> str:
    """Replace sentinels by placeholders."""
    return SENTINEL.sub(lambda match: PLACEHOLDERS[match[0].strip("<>").split()[0]], text)
