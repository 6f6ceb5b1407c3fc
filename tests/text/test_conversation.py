"""The chat template is the conversation llava_v1; its ids are checked in test_tokenizer.py."""

import copy
import time

import pytest
from transformers import LlamaTokenizer

from helpers.asking import SYSTEM
from vllm_videollava.text.conversation import CHAT_TEMPLATE, check_placeholders, collapse_placeholders
from vllm_videollava.text.tokenizer import VideoLlavaTokenizer

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return VideoLlavaTokenizer.from_pretrained(str(checkpoint))


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": [text(content)]}


CONVERSATIONS = {
    "text": ([user(text("Hi"))], f"{SYSTEM} USER: Hi ASSISTANT:"),
    "string": ([{"role": "user", "content": "Hi"}], f"{SYSTEM} USER: Hi ASSISTANT:"),
    "image": ([user(IMAGE, text("What?"))], f"{SYSTEM} USER: <image>\nWhat? ASSISTANT:"),
    "video": ([user(VIDEO, text("What?"))], f"{SYSTEM} USER: <video>\nWhat? ASSISTANT:"),
    "run": ([user(VIDEO, IMAGE, IMAGE, text("What?"))], f"{SYSTEM} USER: <video><image><image>\nWhat? ASSISTANT:"),
    "order": ([user(IMAGE, VIDEO, text("What?"))], f"{SYSTEM} USER: <image><video>\nWhat? ASSISTANT:"),
    "between": (
        [user(text("Look:"), IMAGE, text("What?"), VIDEO, text("And?"))],
        f"{SYSTEM} USER: Look:<image>\nWhat?<video>\nAnd? ASSISTANT:",
    ),
    # As the original's web demo puts an image to a video's question.
    "at the end": ([user(VIDEO, text("Both?"), IMAGE)], f"{SYSTEM} USER: <video>\nBoth?\n<image> ASSISTANT:"),
    "no text": ([user(VIDEO)], f"{SYSTEM} USER: <video>\n ASSISTANT:"),
    "two texts": ([user(text("One."), text("Two."))], f"{SYSTEM} USER: One.\nTwo. ASSISTANT:"),
    "spaces": ([user(text(" a  b\n"))], f"{SYSTEM} USER:  a  b\n ASSISTANT:"),
    "turns": (
        [user(IMAGE, text("What?")), assistant("A dog."), user(text("Why?"))],
        f"{SYSTEM} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: Why? ASSISTANT:",
    ),
    "two systems": (
        [{"role": "system", "content": "One."}, {"role": "system", "content": [text("Two.")]}, user(text("Hi"))],
        "One.\n\nTwo. USER: Hi ASSISTANT:",
    ),
    "system": ([{"role": "system", "content": [text("Be brief.")]}, user(text("Hi"))], "Be brief. USER: Hi ASSISTANT:"),
}


@pytest.mark.parametrize(("messages", "prompt"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversation(tokenizer, messages, prompt):
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert rendered == f"<s>{prompt}"


CALL = {"type": "function", "function": {"name": "draw", "arguments": {"tag": "<video>", "<image>": [1]}}}

# What a text says about placeholders, and a run of them in it that stands for the message's media.
TEXTS = {
    "alone": ([user(text("What is <video>?"))], "USER: What is <!video>? ASSISTANT:"),
    "string": ([{"role": "user", "content": "<image>\nHi"}], "USER: <!image>\nHi ASSISTANT:"),
    "string part": ([{"role": "user", "content": ["<image>"]}], "USER: <!image> ASSISTANT:"),
    "escaped": ([user(text("<!image><!!video>"))], "USER: <!!image><!!!video> ASSISTANT:"),
    "answer": ([user(text("a")), assistant("<video src=x><video>")], "USER: a ASSISTANT: <video src=x><!video></s>"),
    "tool": (
        [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "<p><image></p>"},
        ],
        'ASSISTANT: {"name": "draw", "arguments": {"tag": "<!video>", "<!image>": [1]}}</s>'
        "USER: <p><!image></p> ASSISTANT:",
    ),
    "two calls after text": (
        [{"role": "assistant", "content": "So:", "tool_calls": [CALL, CALL]}],
        'ASSISTANT: So:\n{"name": "draw", "arguments": {"tag": "<!video>", "<!image>": [1]}}'
        '\n{"name": "draw", "arguments": {"tag": "<!video>", "<!image>": [1]}}</s>',
    ),
    "tool with a picture": (
        [{"role": "tool", "content": [IMAGE, text("<image>\n<image>")]}],
        "USER: <image>\n<!image>\n<!image> ASSISTANT:",
    ),
    "kinds of text": (
        [
            user(
                {"type": "input_text", "text": "<image>"},
                {"type": "refusal", "refusal": "<video>"},
                {"type": "thinking", "thinking": "c"},
                {"type": "tool_reference", "name": "d"},
            )
        ],
        "USER: <!image>\n<!video>\nc\nd ASSISTANT:",
    ),
    "leading": ([user(IMAGE, text("<image>\nWhat?"))], "USER: <image>\nWhat? ASSISTANT:"),
    "leading, no newline": ([user(VIDEO, text("<video>What?"))], "USER: <video>\nWhat? ASSISTANT:"),
    "leading, text first": ([user(text("<video>\nWhat?"), VIDEO)], "USER: What?\n<video> ASSISTANT:"),
    "leading, two": ([user(IMAGE, IMAGE, text("<image> <image>\nOdd?"))], "USER: <image><image>\nOdd? ASSISTANT:"),
    "leading, both kinds": (
        [user(VIDEO, IMAGE, text("<image><video>\nOdd?"))],
        "USER: <video><image>\nOdd? ASSISTANT:",
    ),
    "leading, and text": (
        [user(IMAGE, text("<image>\nWhat does <image> mean?"))],
        "USER: <image>\nWhat does <!image> mean? ASSISTANT:",
    ),
    "ending": ([user(IMAGE, text("What?\n<image>"))], "USER: <image>\nWhat? ASSISTANT:"),
    "ending, last of two texts": ([user(IMAGE, text("A."), text("B. <image>"))], "USER: <image>\nA.\nB. ASSISTANT:"),
    "nothing else": ([user(IMAGE, text("<image>"))], "USER: <image>\n ASSISTANT:"),
    "its own part": ([user(IMAGE, text("What?\n"), text("<image>"))], "USER: <image>\nWhat?\n ASSISTANT:"),
    "too many": ([user(IMAGE, text("<image><image>\nWhat?"))], "USER: <image>\n<!image><!image>\nWhat? ASSISTANT:"),
    "too few": ([user(IMAGE, IMAGE, text("<image>\nWhat?"))], "USER: <image><image>\n<!image>\nWhat? ASSISTANT:"),
    "another kind": ([user(VIDEO, text("<image>\nWhat?"))], "USER: <video>\n<!image>\nWhat? ASSISTANT:"),
    "in the middle": ([user(IMAGE, text("Is <image> a tag?"))], "USER: <image>\nIs <!image> a tag? ASSISTANT:"),
    "of another message": (
        [user(IMAGE, text("a")), user(text("<image>\nb"))],
        "USER: <image>\na USER: <!image>\nb ASSISTANT:",
    ),
}


@pytest.mark.parametrize(("messages", "prompt"), TEXTS.values(), ids=TEXTS)
def test_only_parts_are_media(tokenizer, messages, prompt):
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
    )
    assert rendered == f"<s>{SYSTEM} {prompt}"


def test_a_placeholder_of_a_system_message_is_text(tokenizer):
    messages = [{"role": "system", "content": "Say <video>."}, user(text("Hi"))]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>Say <!video>. USER: Hi "


def test_media_of_a_system_message_are_refused(tokenizer):
    messages = [{"role": "system", "content": [IMAGE]}, user(text("Hi"))]
    with pytest.raises(Exception, match="A system message takes text only"):
        tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("kind", ["input_audio", "x" * 1000, None])
def test_other_parts_are_refused(tokenizer, kind):
    sentence = r"A part has the type .{4,40}; it must be text, image or video\."
    if kind is None:
        sentence = r"A part has no type; it must be text, image or video\."
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        tokenizer.apply_chat_template([user({"type": kind, "data": "AAAA"})], tokenize=False)


def test_the_template_alone_shows_no_other_part_as_an_image(checkpoint):
    messages = [user({"type": "tool_reference", "name": "f"}, VIDEO, text("Hi"))]
    plain = LlamaTokenizer.from_pretrained(checkpoint)
    rendered = plain.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, tokenize=False)
    assert rendered == f"<s>{SYSTEM} USER: <video>\nHi "


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "input_image", "image_url": "data:,"},
        {"type": "image_pil", "image_pil": object()},
        {"image_url": "data:,"},
        {"uuid": "1", "image_url": "data:,"},
        {"type": "image", "image": "cat.jpg"},
    ],
)
def test_kinds_of_parts_with_an_image(tokenizer, part):
    rendered = tokenizer.apply_chat_template([user(part, text("<image>\nHi"))], tokenize=False)
    assert rendered == f"<s>{SYSTEM} USER: <image>\nHi "


def test_an_answer_is_continued(tokenizer):
    for content in ("The <video>", [text("The <video>")]):
        messages = [user(text("a")), {"role": "assistant", "content": content}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        assert rendered == f"<s>{SYSTEM} USER: a ASSISTANT: The <!video>"


def test_own_templates(tokenizer):
    """Only what the template itself writes is a placeholder, whatever else it shows."""
    template = (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}"
        "{{ p.text if p.type == 'text' else '<' + p.type + '>' }}"
        "{% endfor %}{% endfor %}{{ tools | tojson }}{{ extra }}"
    )
    tools = [{"name": "<image>"}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "<video>", "content": [VIDEO, text("<video>!")]}],
        chat_template=template,
        tools=tools,
        extra="<image>",
        tokenize=False,
    )
    assert rendered == '[<!video>]<video>![{"name": "<!image>"}]<!image>'
    assert tools == [{"name": "<image>"}]


def test_several_conversations(tokenizer):
    conversations = [
        [user(IMAGE, text("Is it <image>?"))],
        [user(text("<s> a longer one with a <video>, for padding"))],
    ]
    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    assert texts == [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    ids = tokenizer.apply_chat_template(conversations)["input_ids"]
    assert ids == [tokenizer.apply_chat_template(messages)["input_ids"] for messages in conversations]
    assert ids == [tokenizer.encode(text) for text in texts]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = "</s>"
    padded = tokenizer.apply_chat_template(conversations, padding=True, return_tensors="pt")
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (2, len(ids[1]))
    assert padded["attention_mask"].sum(1).tolist() == [len(ids[0]), len(ids[1])]
    single = tokenizer.apply_chat_template(conversations[0], return_tensors="pt", return_dict=False)
    assert single.tolist() == ids[:1]


def test_long_texts_are_rendered_fast(tokenizer):
    for piece in ("<", " ", "!", "<!", "<image", "<image>", "\n<image> "):
        content = [IMAGE, text(piece * 200_000 + "x")]
        start = time.monotonic()
        tokenizer.apply_chat_template([user(*content)], tokenize=False)
        assert time.monotonic() - start < 5


def test_each_placeholder_has_its_media():
    ids = {"image": 257, "video": 258}
    check_placeholders([1, 257, 5, 258, 257], ids, {"image": 2, "video": 1})
    with pytest.raises(ValueError, match=r"1 <video> placeholder for 0 videos"):
        check_placeholders([258], ids, {})
    with pytest.raises(ValueError, match=r"0 <image> placeholders for 1 image"):
        check_placeholders([5], ids, {"image": 1})


def test_the_refusal_says_what_to_write():
    sentence = (
        r"^The prompt has 2 <image> placeholders for 1 image; "
        r"write one for each image, and <!image> where you mean the characters <image>\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        check_placeholders([257, 257], {"image": 257}, {"image": 1})


EXPANDED = {
    "one": ([1, 7, 7, 7, 2], {"image": 1}, [1, 7, 2]),
    "two apart": ([7, 7, 7, 1, 7, 7, 7], {"image": 2}, [7, 1, 7]),
    "two in a run": ([1, 7, 7, 7, 7, 7, 7], {"image": 2}, [1, 7, 7]),
    "single": ([1, 7, 7, 2], {"image": 2}, [1, 7, 7, 2]),
    "both kinds": ([7, 7, 7, 8, 8, 8, 8, 1], {"image": 1, "video": 1}, [7, 8, 1]),
    "one kind": ([7, 7, 7, 8, 1, 1, 1], {"image": 1, "video": 1}, [7, 8, 1, 1, 1]),
    "broken run": ([7, 7, 1, 7], {"image": 1}, None),
    "one too few": ([7, 7, 1], {"image": 1}, None),
    "one too many": ([7, 7, 7, 7], {"image": 1}, None),
    "mixed": ([7, 7, 7, 1, 7], {"image": 2}, None),
    "one item too many": ([7, 7, 7, 7, 7, 7], {"image": 1}, None),
    "another kind": ([8, 8, 8, 8], {"image": 1}, None),
}


@pytest.mark.parametrize(("token_ids", "counts", "collapsed"), EXPANDED.values(), ids=EXPANDED)
def test_placeholders_may_have_all_their_tokens(token_ids, counts, collapsed):
    ids = {"image": 7, "video": 8}
    result = collapse_placeholders(token_ids, ids, counts, {"image": 3, "video": 4})
    if collapsed is None:
        assert result == token_ids
        with pytest.raises(ValueError, match=r"placeholders? for \d"):
            check_placeholders(result, ids, counts)
    else:
        assert result == collapsed
        check_placeholders(result, ids, counts)
