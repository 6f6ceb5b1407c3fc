"""Turns text and its placeholders into token ids, as each format's own code does."""

import copy
import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, BatchEncoding, LlamaTokenizer, PreTrainedTokenizerBase
from vllm.tokenizers.hf import get_cached_tokenizer

from vllm_videollava.checkpoints.config import VideoLlavaConfig
from vllm_videollava.text.conversation import CHAT_TEMPLATE, escape_all, prepare_conversation
from vllm_videollava.text.placeholders import PLACEHOLDERS, hide_placeholders, is_escaped, sentinel, unescape

_PREFIX = "▁"


class ChatTemplateMixin:
    """Renders conversations with any template; only their parts can be media."""

    def apply_chat_template(
        self, conversation, tools=None, documents=None, chat_template=None, **kwargs
    ) -> str | list[int] | list[str] | list[list[int]] | BatchEncoding:
        """Render a conversation as transformers does, after `prepare_conversation`; the default template is llava_v1.

        Tokenising the rendered text gives the same ids as tokenising here.
        """
        return super().apply_chat_template(
            prepare_conversation(conversation),
            escape_all(tools),
            escape_all(documents),
            chat_template,
            **escape_all(kwargs),
        )

    def _tokenize_each(
        self, texts: list[str], padding: bool | str, max_length: int | None, return_tensors: str | None, **kwargs: Any
    ) -> BatchEncoding:
        encodings = [self(text, max_length=max_length, **kwargs) for text in texts]
        columns = {name: [encoding[name] for encoding in encodings] for name in ("input_ids", "attention_mask")}
        return self.pad(columns, padding, max_length, return_tensors=return_tensors)


class OriginalTokenizer(ChatTemplateMixin, LlamaTokenizer):
    """Tokenises each piece between placeholders on its own, as the original code does.

    The original code uses the slow `LlamaTokenizer` of transformers 4.31. Its
    ids are SentencePiece's own, with a prefix before each piece, and so are
    these. Decoding is transformers'.

    Attributes:
        placeholder_ids: the id that stands for a placeholder, by modality. The
            ids are those of two bytes that never occur in UTF-8, so no text is
            tokenised to them. Every LLaMA vocabulary has them, so they can be
            embedded, penalised and requested like any other token.

    Raises:
        ValueError: the checkpoint has no tokenizer.model, or one without byte fallback.
    """

    def __init__(self, *args, vocab_file: str | None = None, legacy: bool = True, **kwargs) -> None:
        super().__init__(*args, vocab_file=vocab_file, legacy=legacy, **kwargs)
        if vocab_file is None:
            raise ValueError("The checkpoint has no tokenizer.model, which the original format needs.")
        self._sentencepiece = SentencePieceProcessor(model_file=vocab_file)
        ids = {"image": self._sentencepiece.piece_to_id("<0xFE>"), "video": self._sentencepiece.piece_to_id("<0xFF>")}
        if self._sentencepiece.unk_id() in ids.values():
            raise ValueError("The checkpoint's tokenizer.model has no byte fallback, which placeholders need.")
        self.placeholder_ids = ids

    @cached_property
    def _separators(self) -> dict[str, int]:
        """The strings that have an id of their own and end a run of words: placeholders, special and added tokens."""
        placeholders = {PLACEHOLDERS[modality]: token_id for modality, token_id in self.placeholder_ids.items()}
        special = dict(zip(self.all_special_tokens, self.all_special_ids, strict=True))
        separators = {**self.get_added_vocab(), **special, **placeholders}
        # A checkpoint may have an empty special token, which would match everywhere.
        return {content: token_id for content, token_id in separators.items() if content}

    @cached_property
    def _separator_pattern(self) -> re.Pattern:
        longest_first = sorted(self._separators, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def __call__(
        self,
        text,
        text_pair=None,
        *,
        add_special_tokens=True,
        padding=False,
        truncation=False,
        max_length=None,
        return_tensors=None,
        **kwargs,
    ) -> BatchEncoding:
        """Tokenise one text or a list of them.

        A BOS token at the beginning of a text counts as the token itself and is
        not added again, so that a chat template may write it.
        """
        if text_pair is not None or kwargs.get("return_offsets_mapping"):
            raise ValueError("Text pairs and token offsets are not supported.")
        if not isinstance(text, str):
            options = {"add_special_tokens": add_special_tokens, "truncation": truncation}
            return self._tokenize_each(text, padding, max_length, return_tensors, **options)
        ids = self._encode(text, add_special_tokens, max_length if truncation else None)
        encoding = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if padding:
            encoding = self.pad(encoding, padding, max_length).data
        return BatchEncoding(encoding, tensor_type=return_tensors, prepend_batch_axis=return_tensors is not None)

    def encode(self, text: str, text_pair=None, **kwargs) -> list[int]:
        return self(text, text_pair, **kwargs)["input_ids"]

    def _encode(self, text: str, add_special_tokens: bool, limit: int | None) -> list[int]:
        text, add_special_tokens = _clean(text, self.bos_token, add_special_tokens)
        ids = [self.bos_token_id] if add_special_tokens else []
        ids.extend(self._encode_pieces(text))
        if limit is None or len(ids) <= limit:
            return ids
        return ids[len(ids) - limit :] if self.truncation_side == "left" else ids[:limit]

    def _encode_pieces(self, text: str) -> Iterator[int]:
        starts_piece, end = True, 0
        for match in self._separator_pattern.finditer(text):
            yield from self._encode_words(unescape(text[end : match.start()]), starts_piece)
            yield self._separators[match[0]]
            starts_piece, end = match[0] in PLACEHOLDERS.values(), match.end()
        yield from self._encode_words(unescape(text[end:]), starts_piece)

    def _encode_words(self, text: str, starts_piece: bool) -> list[int]:
        if self.legacy:
            return self._sentencepiece.encode(text)
        text = text.replace(_PREFIX, " ")
        ids = self._sentencepiece.encode(text)
        if starts_piece or not ids or text.startswith(" "):
            return ids
        # After a special token, 4.31 cuts the prefix off the first token and
        # looks up the rest, though the rest alone might be tokenised differently.
        first = self._sentencepiece.id_to_piece(ids[0])
        if not first.startswith(_PREFIX):
            return ids
        rest = first.removeprefix(_PREFIX)
        return [self._sentencepiece.piece_to_id(rest)] * bool(rest) + ids[1:]


class TransformersTokenizer(ChatTemplateMixin):
    """A mixin for the tokenizer of a checkpoint that has `<image>` and `<video>` in its vocabulary."""

    @cached_property
    def placeholder_ids(self) -> dict[str, int]:
        """The id that stands for a placeholder, by modality."""
        return {modality: self.convert_tokens_to_ids(content) for modality, content in PLACEHOLDERS.items()}

    @cached_property
    def _literal(self) -> "TransformersTokenizer":
        """A copy that reads `<image>` and `<video>` as ordinary characters, and sentinels as the placeholders."""
        backend = json.loads(self.backend_tokenizer.to_str())
        hidden = {content: sentinel(modality) for modality, content in PLACEHOLDERS.items()}
        vocabulary = backend["model"]["vocab"]
        backend["model"]["vocab"] = {hidden.get(content, content): number for content, number in vocabulary.items()}
        for token in backend["added_tokens"]:
            token["content"] = hidden.get(token["content"], token["content"])
        literal = copy.copy(self)
        literal._tokenizer = Tokenizer.from_str(json.dumps(backend))
        return literal

    def __call__(
        self, text, *args, add_special_tokens=True, padding=False, max_length=None, return_tensors=None, **kwargs
    ) -> BatchEncoding:
        """Tokenise as transformers does, but treat a leading BOS token as `OriginalTokenizer` does."""
        if not isinstance(text, str):
            options = {"add_special_tokens": add_special_tokens, **kwargs}
            return self._tokenize_each(text, padding, max_length, return_tensors, **options)
        text, add_special_tokens = _clean(text, self.bos_token, add_special_tokens)
        tokenizer = self
        if is_escaped(text):
            tokenizer, text = self._literal, unescape(hide_placeholders(text))
        return super(TransformersTokenizer, tokenizer).__call__(
            text,
            *args,
            add_special_tokens=add_special_tokens,
            padding=padding,
            max_length=max_length,
            return_tensors=return_tensors,
            **kwargs,
        )

    def encode(self, text: str, *args, **kwargs) -> list[int]:
        return self(text, *args, **kwargs)["input_ids"]


def _clean(text: str, bos_token: str, add_special_tokens: bool) -> tuple[str, bool]:
    """Remove a leading BOS token; return the rest of the text, and whether to add special tokens.

    Halves of a character become question marks: JSON may contain them, but no tokenizer takes them.
    """
    text = text.encode("utf-8", "replace").decode()
    return text.removeprefix(bos_token), add_special_tokens or text.startswith(bos_token)


def _know_placeholders(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer, with `TransformersTokenizer` mixed in."""

    class Tokenizer(TransformersTokenizer, type(tokenizer)):
        def __reduce__(self):
            return _know_placeholders, (tokenizer,)

    mixed = copy.copy(tokenizer)
    mixed.__class__ = Tokenizer
    return mixed


class VideoLlavaTokenizer:
    """Loads a checkpoint's tokenizer for vLLM's tokenizer mode `video_llava`."""

    @classmethod
    def from_pretrained(cls, name: str, *args, download_dir: str | None = None, **kwargs) -> PreTrainedTokenizerBase:
        """Load the tokenizer of a folder or repository, in either format.

        Its chat template is always llava_v1, whatever the checkpoint says, as in `LLM.chat`.

        Raises:
            ValueError: the checkpoint's tokenizer cannot be served.
        """
        tokenizer = AutoTokenizer.from_pretrained(name, *args, cache_dir=download_dir, **kwargs)
        original = _is_original(name, tokenizer, kwargs.get("revision"), download_dir)
        _check_special_tokens(tokenizer, original)
        if original:
            tokenizer = OriginalTokenizer.from_pretrained(name, *args, cache_dir=download_dir, **kwargs)
            tokenizer.chat_template = CHAT_TEMPLATE
        else:
            tokenizer.chat_template = CHAT_TEMPLATE
            tokenizer = _know_placeholders(tokenizer)
        return get_cached_tokenizer(tokenizer)


def limit_token_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Make a tokenizer tell vLLM the largest id that the model has.

    vLLM refuses larger ids in prompts and bad words. But the tokenizer may have
    tokens that the model lacks, and vLLM before 0.31 uses the number of tokens
    as the largest id. Either would kill the engine.
    """
    # Set on the class, because vLLM caches such values in a subclass that it makes for the tokenizer.
    type(tokenizer).max_token_id = min(tokenizer.max_token_id, vocab_size - 1)


def _is_original(name: str, tokenizer: PreTrainedTokenizerBase, revision: str | None, download_dir: str | None) -> bool:
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, cache_dir=download_dir)
    except (OSError, ValueError):
        config = None
    if isinstance(config, VideoLlavaConfig):
        return config.original_format
    # The folder has the tokenizer without its model, so the vocabulary decides.
    return not set(PLACEHOLDERS.values()) <= tokenizer.get_added_vocab().keys()


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase, original: bool) -> None:
    if original:
        settings = tokenizer.init_kwargs
        adds = settings.get("add_bos_token", True), settings.get("add_eos_token", False)
    else:
        # transformers' settings do not show what a tokenizer.json does.
        ids = tokenizer.encode("a")
        adds = ids[0] == tokenizer.bos_token_id, ids[-1] == tokenizer.eos_token_id
    for name, value, supported in zip(("add_bos_token", "add_eos_token"), adds, (True, False), strict=True):
        if value != supported:
            value, supported = str(value).lower(), str(supported).lower()
            raise ValueError(f"The tokenizer's {name} is {value}; it must be {supported}.")
