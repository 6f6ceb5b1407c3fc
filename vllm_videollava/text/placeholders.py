"""The placeholders of images and videos in a text, and their escaped forms.

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

# Clients cannot know these, because they are different in every process.
_SENTINELS = {modality: f"<{modality} {secrets.token_hex(8)}>" for modality in PLACEHOLDERS}
SENTINEL = re.compile("|".join(_SENTINELS.values()))


def escape(text: str) -> str:
    """Escape a text, so that it means its own characters."""
    return _RESERVED.sub("<!", text)


def unescape(text: str) -> str:
    """Return the characters that a text means; the text has no placeholders."""
    return _ESCAPED.sub("<", text)


def is_escaped(text: str) -> bool:
    """Tell whether some characters of a text are escaped."""
    return _ESCAPED.search(text) is not None


def split_placeholders(text: str) -> list[str]:
    """Split a text into alternating texts and placeholders; the first and the last items are texts."""
    return _PLACEHOLDER.split(text)


def sentinel(modality: str) -> str | None:
    """Return a stand-in for a placeholder, which no client can write, or None if the model lacks this modality."""
    return _SENTINELS.get(modality)


def hide_placeholders(text: str) -> str:
    """Replace placeholders with sentinels."""
    return _PLACEHOLDER.sub(lambda match: _SENTINELS[match[0].strip("<>")], text)


def show_placeholders(text: str) -> str:
    """Replace sentinels with placeholders."""
    return SENTINEL.sub(lambda match: PLACEHOLDERS[match[0].strip("<>").split()[0]], text)
