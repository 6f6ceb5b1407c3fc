"""A check that a text is valid Unicode."""

from vllm_videollava.decoding.errors import shorten


def check_text(subject: str, text: str | None) -> None:
    """Refuse halves of a character, which can neither be hashed nor sent.

    Raises:
        ValueError: the text has such halves.
    """
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{subject} has {shorten(text)}, which is not valid Unicode.") from error
