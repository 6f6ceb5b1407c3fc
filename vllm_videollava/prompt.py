"""The conversation `llava_v1` as a chat template, and the check that its placeholders have their media."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_videollava.tokenizer import PLACEHOLDERS

CHAT_TEMPLATE = Path(__file__).with_name("llava_v1.jinja").read_text()


def check_placeholders(
    token_ids: Sequence[int], placeholder_ids: Mapping[str, int], media_counts: Mapping[str, int]
) -> None:
    """Check that a prompt has one placeholder for each image and each video.

    Raises:
        ValueError: it has more or fewer.
    """
    for modality, token_id in placeholder_ids.items():
        given, asked = media_counts.get(modality, 0), token_ids.count(token_id)
        if given != asked:
            raise ValueError(
                f"The prompt has {asked} {PLACEHOLDERS[modality]} placeholder(s) but {given} {modality}(s) were given."
            )
