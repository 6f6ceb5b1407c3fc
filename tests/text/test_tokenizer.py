"""Token ids equal those of the original code, and no text becomes a placeholder."""

import copy
import json
import pickle
import random
import re
import shutil

import pytest
import sentencepiece
from transformers import LlamaTokenizer
from vllm.tokenizers.hf import maybe_make_thread_pool

from helpers.checkpoints import copy_checkpoint
from helpers.paths import TESTS
from vllm_videollava.checkpoints.config import register
from vllm_videollava.text.tokenizer import VideoLlavaTokenizer, limit_token_ids

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


LITERALS = [
    "What is <!video>?",
    "<!image>",
    "a <!!image><!video> b",
    "<!video><!image>\n<!video>",
    "  <!image>  ",
    "é🎉<!video>\t<!image",
    "<!videos> <!Video> <! image> <!>",
]


@pytest.mark.parametrize("text", LITERALS)
def test_escaped_placeholders_are_their_characters(tokenizer_and_expected, text):
    tokenizer, _ = tokenizer_and_expected
    model = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "tokenizer.model"))
    characters = re.sub("<!(!*(?:image|video)>)", r"<\1", text)
    before, after = model.encode("USER: "), model.encode(f"\n{characters}")
    assert tokenizer.encode(text) == [1, *model.encode(characters)]
    assert tokenizer.encode(f"USER: <image>\n{text}") == [1, *before, tokenizer.placeholder_ids["image"], *after]
    ids = [1, *model.encode(characters), tokenizer.placeholder_ids["image"], *model.encode("b")]
    assert tokenizer.encode(f"{text}<image>b") == ids


@pytest.mark.parametrize("text", LITERALS)
def test_escaped_placeholders_are_their_characters_in_transformers_format(checkpoint, transformers_folder, text):
    tokenizer = VideoLlavaTokenizer.from_pretrained(str(transformers_folder))
    # The same vocabulary with other names for the two placeholders.
    plain = LlamaTokenizer.from_pretrained(checkpoint)
    plain.add_tokens(["<picture>", "<clip>"], special_tokens=True)
    characters = re.sub("<!(!*(?:image|video)>)", r"<\1", text)
    assert tokenizer.encode(text) == plain.encode(characters)
    for prompt in ("USER: <image>\n{}</s> <video> {}", "{}<image>", "<video>{} <video>"):
        renamed = prompt.replace("<image>", "<picture>").replace("<video>", "<clip>")
        ids = plain.encode(renamed.format(characters, characters))
        assert tokenizer.encode(prompt.format(text, text)) == ids


@pytest.fixture(scope="module")
def transformers_folder(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    plain = LlamaTokenizer.from_pretrained(checkpoint)
    plain.add_tokens(["<image>", "<video>"], special_tokens=True)
    plain.save_pretrained(folder)
    return folder


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
    escaped = "USER: <video>\n<!video>"
    assert pool.encode(escaped) == copy.deepcopy(tokenizer).encode(escaped) == tokenizer.encode(escaped)
    assert tokenizer([f"<s>{text}", escaped])["input_ids"] == [tokenizer.encode(text), tokenizer.encode(escaped)]


def folder_with(tmp_path, **settings):
    for name in ("tokenizer.model", "special_tokens_map.json"):
        shutil.copy(DATA / name, tmp_path)
    values = json.loads((DATA / "tokenizer_config.json").read_text()) | settings
    settings = {name: value for name, value in values.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(tmp_path)


def test_an_empty_special_token_is_found_nowhere(tmp_path):
    tokenizer = VideoLlavaTokenizer.from_pretrained(folder_with(tmp_path, pad_token=""))
    plain = VideoLlavaTokenizer.from_pretrained(str(DATA))
    assert tokenizer.encode("a dog</s> and <image>") == plain.encode("a dog</s> and <image>")


def test_bos_is_added_if_the_settings_do_not_say(tmp_path):
    folder = folder_with(tmp_path, add_bos_token=None, add_eos_token=None)
    plain = VideoLlavaTokenizer.from_pretrained(str(DATA))
    assert VideoLlavaTokenizer.from_pretrained(folder).encode("a dog") == plain.encode("a dog")


@pytest.mark.parametrize(("name", "value"), [("add_bos_token", False), ("add_eos_token", True)])
@pytest.mark.parametrize("format", ["original", "transformers"])
def test_other_settings_of_special_tokens_are_refused(tmp_path, transformers_folder, format, name, value):
    if format == "original":
        folder = folder_with(tmp_path, **{name: value})
    else:
        folder, plain = tmp_path, LlamaTokenizer.from_pretrained(transformers_folder)
        plain.add_bos_token, plain.add_eos_token = True, False
        setattr(plain, name, value)
        plain.update_post_processor()
        plain.save_pretrained(folder)
    sentence = f"^The tokenizer's {name} is {str(value).lower()}; it must be {str(not value).lower()}\\.$"
    with pytest.raises(ValueError, match=sentence):
        VideoLlavaTokenizer.from_pretrained(str(folder))


def test_the_config_decides_whose_tokenisation_holds(checkpoint, tmp_path):
    register()
    folder = copy_checkpoint(checkpoint, tmp_path / "copy")
    plain = LlamaTokenizer.from_pretrained(checkpoint)
    plain.add_tokens(["<image>", "<video>"], special_tokens=True)
    plain.save_pretrained(folder)
    shutil.copy(checkpoint / "tokenizer.model", folder)
    text = "USER: <video>\nWhat? <!video>"
    ids = VideoLlavaTokenizer.from_pretrained(str(checkpoint)).encode(text)
    assert VideoLlavaTokenizer.from_pretrained(str(folder)).encode(text) == ids


def test_the_chat_template_is_llava_v1_whatever_the_checkpoint_has(tmp_path, transformers_folder):
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Is it <video>?"}]}]
    copied = shutil.copytree(transformers_folder, tmp_path / "copy")
    (copied / "chat_template.jinja").write_text("other")
    original = folder_with(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("other")
    for folder in (copied, original):
        tokenizer = VideoLlavaTokenizer.from_pretrained(str(folder))
        pool = maybe_make_thread_pool(copy.copy(tokenizer), 2)
        for any_tokenizer in (tokenizer, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer)), pool):
            text = any_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert text.endswith("questions. USER: <video>\nIs it <!video>? ASSISTANT:")
            ids = any_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert ids == tokenizer.encode(text)
            assert ids.count(tokenizer.placeholder_ids["video"]) == 1
            assert "Is it <video>?" in tokenizer.decode(ids)


def test_the_largest_id_is_the_models(checkpoint):
    limited, pool, other = (VideoLlavaTokenizer.from_pretrained(str(checkpoint)) for _ in range(3))
    pool = maybe_make_thread_pool(pool, 2)
    for tokenizer in (limited, pool):
        for vocab_size, largest in ((10**6, tokenizer.max_token_id), (384, 383), (300, 299)):
            limit_token_ids(tokenizer, vocab_size)
            assert tokenizer.max_token_id == largest
    assert other.max_token_id >= 383
