"""The chat template is the conversation llava_v1; its ids are checked in test_tokenizer.py."""

import pytest
from asking import SYSTEM

from vllm_videollava.prompt import CHAT_TEMPLATE, check_placeholders
from vllm_videollava.tokenizer import VideoLlavaTokenizer

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


def test_each_placeholder_has_its_media():
    ids = {"image": 257, "video": 258}
    check_placeholders([1, 257, 5, 258, 257], ids, {"image": 2, "video": 1})
    with pytest.raises(ValueError, match=r"1 <video> placeholder\(s\) but 0 video\(s\) were given"):
        check_placeholders([258], ids, {})
    with pytest.raises(ValueError, match=r"0 <image> placeholder\(s\) but 1 image\(s\) were given"):
        check_placeholders([5], ids, {"image": 1})
