"""How many tokens a prompt takes, and the refusal of one that is too long."""

from collections.abc import Mapping


def check_length(
    counts: Mapping[str, int],
    tokens_per_item: Mapping[str, int],
    num_text_tokens: int,
    max_model_len: int,
    *,
    num_output_tokens: int = 1,
    at_least: bool = False,
) -> None:
    """Check that a prompt and its answer fit into the context.

    Args:
        counts: number of items, by modality.
        tokens_per_item: tokens that one item takes, by modality.
        num_text_tokens: tokens of everything else; 0 means that they are not known yet.
        max_model_len: tokens of the context.
        num_output_tokens: tokens that are kept for the answer.
        at_least: whether the text has at least, rather than exactly, `num_text_tokens`.

    Raises:
        ValueError: they do not fit; the sentence says how many tokens images, videos and text take.
    """
    tokens = {modality: count * tokens_per_item[modality] for modality, count in counts.items() if count}
    total = sum(tokens.values()) + num_text_tokens
    if total + num_output_tokens <= max_model_len:
        return
    answer = "answer included" if num_output_tokens == 1 else f"of which max_tokens takes {num_output_tokens}"
    limit = f"the limit is {max_model_len} (max_model_len), {answer}."
    takes = [
        f"{counts[modality]} {modality}{'s take' if counts[modality] > 1 else ' takes'} {number}"
        for modality, number in tokens.items()
    ]
    if not num_text_tokens:
        raise ValueError(f"{' and '.join(takes)} tokens; {limit}")
    qualifier = "at least " if at_least else ""
    shares = f": {', '.join(takes)} and text takes {qualifier}{num_text_tokens}" if takes else ""
    raise ValueError(f"The prompt has {qualifier}{total} tokens{shares}; {limit}")
