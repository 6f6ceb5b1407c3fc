"""What is said of media that cannot be used."""


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
