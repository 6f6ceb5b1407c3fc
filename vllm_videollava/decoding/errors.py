"""Which media are refused, and what is said of them."""

MAX_SIDE_RATIO = 64


class MediaError(ValueError):
    """One sentence about one image or video; vLLM's server answers with it and HTTP 400.

    Args:
        sentence: what is wrong.
        detail: more, for the log only.
        url: where the client said that the medium is, if it did.
    """

    def __init__(self, sentence: str, *, detail: str | None = None, url: str | None = None) -> None:
        super().__init__(sentence)
        self.detail = detail
        self.url = url


def check_sides(medium: str, height: int, width: int) -> None:
    """Refuse what is too narrow: padded to a square, or scaled before the crop, it would be huge.

    Raises:
        MediaError: one side is more than 64 times the other.
    """
    if max(height, width) > MAX_SIDE_RATIO * min(height, width):
        raise MediaError(
            f"{medium} of {width}x{height} pixels is too narrow; "
            f"one side may be at most {MAX_SIDE_RATIO} times the other."
        )
