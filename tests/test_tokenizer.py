"""Token ids equal those of the original code, and no text becomes a placeholder."""

import copy
import json
import pickle
import random
import shutil

import pytest
from conftest import TESTS
from transformers import LlamaTokenizer
from vllm.tokenizers.hf import maybe_make_thread_pool

from vllm_videollava.tokenizer import VideoLlavaTokenizer

DATA = TESTS / "data" / "tokenizer"
ORIGINAL_PLACEHOLDER = -200


@pytest.fixture(scope="module", params=[False, True], ids=["legacy=False", "legacy=True"])
def tokenizer_and_expected(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.model", "special_tokens_map.json"):
        shutil.copy(DATA / name, folder)
    settings = json.loads((DATA / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "legacy": request.param}))
    expected = json.loads((DATA / "ids.json").read_text())[f"legacy={request.param}"]
    return VideoLlavaTokenizer.from_pretrained(str(folder)), expected


def test_ids_are_those_of_the_original_code(tokenizer_and_expected):
    tokenizer, expected = tokenizer_and_expected
    assert len(expected) > 300
    for prompt, ids in expected:
        ids = [tokenizer.placeholder_ids["image"] if token == ORIGINAL_PLACEHOLDER else token for token in ids]
        assert tokenizer.encode(prompt) == ids, prompt
        assert tokenizer.encode(prompt, add_special_tokens=False) == ids[1:], prompt


def test_bos_in_the_text_counts_as_added(tokenizer_and_expected):
    tokenizer, _ = tokenizer_and_expected
    for add_special_tokens in (True, False):
        assert tokenizer.encode("<s>A dog", add_special_tokens=add_special_tokens) == tokenizer.encode("A dog")


def test_copies_tokenise_alike(tokenizer_and_expected):
    tokenizer, _ = tokenizer_and_expected
    text = "USER: <video>\nWhy?</s>USER"
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.placeholder_ids["video"]) == 1
    pool = maybe_make_thread_pool(copy.copy(tokenizer), 2)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer)), pool):
        assert other.encode(text) == ids
        assert other([text, text])["input_ids"] == [ids, ids]


def test_truncation_takes_the_side_that_is_set(tokenizer_and_expected):
    tokenizer, _ = tokenizer_and_expected
    tokenizer = copy.deepcopy(tokenizer)
    ids = tokenizer.encode("a dog and a cat")
    for side, expected in (("left", ids[-3:]), ("right", ids[:3])):
        tokenizer.truncation_side = side
        assert tokenizer.encode("a dog and a cat", truncation=True, max_length=3) == expected


def test_no_text_becomes_a_placeholder(tokenizer_and_expected):
    tokenizer, _ = tokenizer_and_expected
    placeholders = set(tokenizer.placeholder_ids.values())
    draw = random.Random(0)
    every_plane = [chr(code) for code in (*range(0x800), *range(0xE000, 0x10FFFF, 997))]
    for _ in range(300):
        text = "".join(draw.choices(every_plane, k=40)) + draw.choice(["<0xFE>", "<0xFF>", "<unk>", "</s>"])
        assert placeholders.isdisjoint(tokenizer.encode(text)), text


def test_a_checkpoint_without_tokenizer_model_is_refused(tmp_path):
    VideoLlavaTokenizer.from_pretrained(str(DATA)).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(DATA / "tokenizer_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer\.model"):
        VideoLlavaTokenizer.from_pretrained(str(tmp_path))


def test_the_tokenizer_of_transformers_format_travels(checkpoint, tmp_path):
    plain = LlamaTokenizer.from_pretrained(checkpoint)
    plain.add_tokens(["<image>", "<video>"], special_tokens=True)
    plain.save_pretrained(tmp_path)
    tokenizer = VideoLlavaTokenizer.from_pretrained(str(tmp_path))
    text = "USER: <video>\nWhy? <image></s>"
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.encode(f"<s>{text}", add_special_tokens=False) == plain.encode(text)
    assert tokenizer.encode("a\ud800b") == plain.encode("a?b")
    pool = maybe_make_thread_pool(copy.copy(tokenizer), 2)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer)), pool):
        assert other.encode(text) == plain.encode(text)
        assert other.placeholder_ids == tokenizer.placeholder_ids
