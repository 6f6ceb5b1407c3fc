"""Makes a model's inputs of conversations and files, as the server does."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from training.data_files import Entry
from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.media.io import MediaDecoder, MediaFileIO
from vllm_videollava.text.tokenizer import VideoLlavaTokenizer

NOT_LEARNT = -100


class Batch(NamedTuple):
    """Some conversations, padded on the right.

    Attributes:
        ids: `[B, L]`, with a placeholder's id for each token of a medium.
        labels: `[B, L]`, the id of the next token where that belongs to an answer, or `NOT_LEARNT`.
        images: uint8 `[I, 3, S, S]`, all images of the first conversation, then those of the second, and so on.
        videos: uint8 `[V, T, 3, S, S]`, likewise.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    images: torch.Tensor
    videos: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class BatchMaker:
    """Tokenises and decodes for one base.

    Args:
        base: the base's folder or repository, which has the tokenizer.
        config: the base's config.
    """

    def __init__(self, base: str, config: VideoLlavaConfig) -> None:
        self.tokenizer: PreTrainedTokenizerBase = VideoLlavaTokenizer.from_pretrained(base)
        self._config = config
        self._decoder = MediaDecoder(config.pixel_format)

    def encode(self, entry: Entry) -> tuple[list[int], list[int]]:
        """Return a conversation's ids and labels; see `Batch`."""
        ids: list[int] = []
        labels: list[int] = []
        for end in range(1, len(entry.messages), 2):
            prompt = self._ids(entry.messages[:end], add_generation_prompt=True)
            ids = self._ids(entry.messages[: end + 1], add_generation_prompt=False)
            labels += [NOT_LEARNT] * (len(prompt) - len(labels)) + ids[len(prompt) :]
        return self._expand(ids, labels)

    def _ids(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return self.tokenizer.encode(text)

    def _expand(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Repeat placeholders, and shift the labels by one."""
        counts = {
            token_id: self._config.tokens_per_item[kind] for kind, token_id in self.tokenizer.placeholder_ids.items()
        }
        repeats = [counts.get(token_id, 1) for token_id in ids]
        return np.repeat(ids, repeats).tolist(), [*np.repeat(labels, repeats)[1:].tolist(), NOT_LEARNT]

    def decode(self, kind: str, path: Path) -> torch.Tensor:
        """Return an image's or a video's pixels, uint8 `[3, S, S]` or `[T, 3, S, S]`.

        Raises:
            MediaError: the file cannot be decoded, or goes beyond a setting.
        """
        pixels = self._decoder.decode(MediaFileIO(kind).load_file(path)).media
        # Of an image's two forms, the first is cropped, as it is served by default.
        pixels = np.asarray(pixels[0] if kind == "image" else pixels)
        return torch.from_numpy(pixels.copy()).movedim(-1, -3)

    def make(self, entries: Sequence[Entry]) -> Batch:
        """Make one batch; several files are decoded at once."""
        ids, labels = zip(*map(self.encode, entries), strict=True)
        media = [medium for entry in entries for medium in entry.media]
        with ThreadPoolExecutor() as threads:
            pixels = list(threads.map(lambda medium: self.decode(*medium), media))
        by_kind = {
            kind: [one for (of_kind, _), one in zip(media, pixels, strict=True) if of_kind == kind]
            for kind in ("image", "video")
        }
        return Batch(
            _pad(ids, 0),
            _pad(labels, NOT_LEARNT),
            *(torch.stack(items) if items else torch.empty(0, dtype=torch.uint8) for items in by_kind.values()),
        )

    def find_faults(self, entries: Sequence[Entry]) -> Iterator[str]:
        """Decode every file and count the tokens of every entry; yield a sentence about each that will not do."""
        most = self._config.text_config.max_position_embeddings
        media = list(dict.fromkeys(medium for entry in entries for medium in entry.media))
        with ThreadPoolExecutor() as threads:
            found = threads.map(lambda medium: self._fault(*medium), media)
            faults = dict(zip(media, tqdm(found, "checking", len(media), smoothing=0), strict=True))
        for entry in entries:
            if (length := len(self.encode(entry)[0])) > most:
                yield f"{entry.place}: It has {length} tokens; the model takes {most} at most."
            yield from (
                f"{entry.place}: {path}: {fault}" for kind, path in entry.media if (fault := faults[kind, path])
            )

    def _fault(self, kind: str, path: Path) -> str | None:
        try:
            self.decode(kind, path)
        except MediaError as error:
            return str(error)
        except OSError as error:
            return f"It cannot be read: {error.strerror}."
        return None


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    rows = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def prefetch(maker: BatchMaker, groups: Sequence[Sequence[Entry]]) -> Iterator[Batch]:
    """Yield a batch for each group, and make the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(maker.make, groups[0])
        for group in groups[1:]:
            batch, coming = coming.result(), thread.submit(maker.make, group)
            yield batch
        yield coming.result()
