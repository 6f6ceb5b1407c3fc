"""Text to token ids, piece by piece between placeholders, as the original code does it."""

import re
from collections.abc import Iterator
from functools import cached_property

from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase
from vllm.tokenizers.hf import get_cached_tokenizer

PLACEHOLDERS = {"image": "<image>", "video": "<video>"}

# The bytes 0xFE and 0xFF occur in no UTF-8 text, so no text is ever tokenised
# to these ids; and every LLaMA vocabulary has them, so they can be embedded,
# penalised and asked for their log-probability like any other token.
_PLACEHOLDER_BYTES = {"image": "<0xFE>", "video": "<0xFF>"}

_PREFIX = "▁"


class PiecewiseTokenizer:
    """Mixed into a LLaMA tokenizer by `VideoLlavaTokenizer`: placeholders become single ids.

    A tokenizer that has `<image>` and `<video>` in its vocabulary (transformers'
    checkpoint) keeps its own ids for them and its own way with text. One that
    has not (the original checkpoint) tokenises each piece between placeholders
    on its own, as the original code's slow `LlamaTokenizer` of transformers
    4.31 would.
    """

    @cached_property
    def placeholder_ids(self) -> dict[str, int]:
        """Token id of one placeholder by modality, "image" and "video"."""
        contents = PLACEHOLDERS if self.knows_placeholders else _PLACEHOLDER_BYTES
        return {modality: self.convert_tokens_to_ids(content) for modality, content in contents.items()}

    @cached_property
    def knows_placeholders(self) -> bool:
        return set(PLACEHOLDERS.values()) <= self.get_added_vocab().keys()

    @cached_property
    def _separators(self) -> dict[str, int]:
        ids = {PLACEHOLDERS[modality]: token_id for modality, token_id in self.placeholder_ids.items()}
        special = {token: self.convert_tokens_to_ids(token) for token in self.all_special_tokens}
        return {**self.get_added_vocab(), **special, **ids}

    @cached_property
    def _separator_pattern(self) -> re.Pattern:
        longest_first = sorted(self._separators, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text, text_pair=None, *, add_special_tokens=True, **kwargs):
        """Tokenise one text; see `PreTrainedTokenizerBase.__call__` for the arguments.

        A text that begins with the BOS token is read as if that token had been
        added, so that a chat template may write it.
        """
        if not isinstance(text, str) or text_pair is not None:
            return super().__call__(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)
        if text.startswith(self.bos_token):
            text, add_special_tokens = text.removeprefix(self.bos_token), True
        if self.knows_placeholders:
            return super().__call__(text, add_special_tokens=add_special_tokens, **kwargs)
        ids = [self.bos_token_id] if add_special_tokens else []
        ids.extend(self._encode_pieces(text))
        ids = self._truncate(ids, **kwargs)
        return BatchEncoding({"input_ids": ids, "attention_mask": [1] * len(ids)})

    def encode(self, text, text_pair=None, **kwargs) -> list[int]:
        return self(text, text_pair, **kwargs)["input_ids"]

    def _truncate(self, ids: list[int], *, truncation=False, max_length=None, **_) -> list[int]:
        if not truncation or max_length is None or len(ids) <= max_length:
            return ids
        return ids[len(ids) - max_length :] if self.truncation_side == "left" else ids[:max_length]

    def _encode_pieces(self, text: str) -> Iterator[int]:
        starts_piece, end = True, 0
        for match in self._separator_pattern.finditer(text):
            yield from self._encode_words(text[end : match.start()], starts_piece)
            yield self._separators[match[0]]
            starts_piece, end = match[0] in PLACEHOLDERS.values(), match.end()
        yield from self._encode_words(text[end:], starts_piece)

    def _encode_words(self, text: str, starts_piece: bool) -> list[int]:
        if not text:
            return []
        # The model below the tokenizer is SentencePiece's BPE, which puts one
        # prefix before any text; the layers above it would not if there is one.
        tokens = self.backend_tokenizer.model.tokenize(_PREFIX + text.replace(" ", _PREFIX))
        if starts_piece or text.startswith((" ", _PREFIX)) or self.init_kwargs.get("legacy", True):
            return [token.id for token in tokens]
        # After a special token, 4.31 cuts the prefix off the first token and
        # looks the rest up, though the rest alone may be tokenised otherwise.
        first = tokens[0].value.removeprefix(_PREFIX)
        return [self.convert_tokens_to_ids(first)] * bool(first) + [token.id for token in tokens[1:]]


class VideoLlavaTokenizer:
    """Loads a checkpoint's tokenizer for vLLM's tokenizer mode `video_llava`."""

    @classmethod
    def from_pretrained(cls, name: str, *args, download_dir: str | None = None, **kwargs) -> PreTrainedTokenizerBase:
        """Load the tokenizer of a folder or repository and make it tokenise piece by piece.

        Raises:
            ValueError: its vocabulary has neither the placeholders nor all byte tokens.
        """
        tokenizer = AutoTokenizer.from_pretrained(name, *args, cache_dir=download_dir, **kwargs)
        base = type(tokenizer)
        tokenizer.__class__ = type(f"Piecewise{base.__name__}", (PiecewiseTokenizer, base), {})
        if None in (ids := tokenizer.placeholder_ids.values()) or tokenizer.unk_token_id in ids:
            raise ValueError(
                f"The tokenizer of {name} has neither <image> and <video> nor the byte tokens <0xFE> and <0xFF> "
                "in its vocabulary; a LLaMA tokenizer with byte fallback is supported."
            )
        return get_cached_tokenizer(tokenizer)
