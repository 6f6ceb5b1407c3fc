from contextlib import contextmanager

from vllm_videollava.errors import MediaError


@contextmanager
def fetch_refusals(kind, url):
    try:
        yield
    except MediaError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        if url[:5].lower() == "file:":
            sentence = f"The file of the {kind} cannot be read, or --allowed-local-media-path does not allow it."
            raise MediaError(sentence, detail=str(error), url=url) from error
        raise MediaError(f"The {kind} cannot be fetched: {error}", url=url) from error
