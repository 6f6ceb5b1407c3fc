"""From messages or a prompt to what the engine gets, without an engine: only parts are media, and lengths are told."""

import asyncio
import re

import pytest
import sentencepiece
from transformers import LlamaTokenizer

from helpers.asking import SYSTEM, picture
from helpers.checkpoints import write_transformers_checkpoint

IMAGE_TOKENS, VIDEO_TOKENS = 16, 136
MAX_MODEL_LEN = 600
IMAGE = {"type": "image_pil", "image_pil": picture(1)}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"tag": "<video>"}'}}


def text(content: str) -> dict:
    return {"type": "text", "text": content}


class Rendering:
    """A renderer, and the ids that its checkpoint's vocabulary gives, found without it."""

    def __init__(self, folder, vocabulary) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.plugins import load_general_plugins
        from vllm.renderers import renderer_from_config
        from vllm.renderers.hf import HfRenderer

        load_general_plugins()
        engine_args = EngineArgs(str(folder), dtype="float32", max_model_len=MAX_MODEL_LEN)
        self.renderer = renderer_from_config(engine_args.create_engine_config())
        self.tokenizer = self.renderer.get_tokenizer()
        self.ids_of = self.tokenizer.placeholder_ids
        self.vocabulary = vocabulary

        # vLLM up to 0.30 does not truncate again when images and videos have taken their tokens.
        self.truncates_again = hasattr(HfRenderer, "_truncate_expanded_prompt")

    def params(self, template=None, content_format="auto", chat_template_kwargs=None, **tokenization):
        from vllm.renderers import ChatParams, TokenizeParams

        template_kwargs = {"add_generation_prompt": True, "tokenize": False, **(chat_template_kwargs or {})}
        return (
            ChatParams(template, content_format, template_kwargs),
            TokenizeParams(**{"max_total_tokens": MAX_MODEL_LEN, "add_special_tokens": False, **tokenization}),
        )

    def chat(self, messages, **options) -> dict:
        _, (prompt,) = self.renderer.render_chat([messages], *self.params(**options))
        return prompt

    def generate(self, **prompt) -> dict:
        from vllm.renderers import TokenizeParams

        (prompt,) = self.renderer.render_cmpl([prompt], TokenizeParams(MAX_MODEL_LEN))
        return prompt

    def expected(self, *pieces: str) -> list[int]:
        """Return the ids of a text, in which "image" and "video" are its placeholders and all else is characters."""
        return [1, *self.vocabulary(self.ids_of, pieces)]


def original_ids(model, ids_of, pieces):
    ids = []
    for piece in pieces:
        ids += [ids_of[piece]] * IMAGE_TOKENS if piece == "image" else model.encode(piece)
    return ids


def transformers_ids(tokenizer, ids_of, pieces):
    ids = []
    for token_id in tokenizer.encode("".join("<picture>" if piece == "image" else piece for piece in pieces))[1:]:
        ids += [token_id] * (IMAGE_TOKENS if token_id == ids_of["image"] else 1)
    return ids


@pytest.fixture(scope="module", params=["original", "transformers"])
def rendering(request, checkpoint, tmp_path_factory):
    if request.param == "original":
        model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
        return Rendering(checkpoint, lambda *args: original_ids(model, *args))
    folder = write_transformers_checkpoint(tmp_path_factory.mktemp("rendering"), checkpoint)
    # The same vocabulary with other names for the two placeholders.
    tokenizer = LlamaTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<picture>", "<clip>"], special_tokens=True)
    return Rendering(folder, lambda *args: transformers_ids(tokenizer, *args))


CHATS = {
    "question": ([{"role": "user", "content": "What is <video>?"}], ["USER: What is <video>? ASSISTANT:"]),
    "beside an image": (
        [{"role": "user", "content": [IMAGE, text("Is it <image> or <video>?")]}],
        ["USER: ", "image", "\nIs it <image> or <video>? ASSISTANT:"],
    ),
    "LLaVA's style": (
        [{"role": "user", "content": [IMAGE, text("<image>\nIs it <image>?")]}],
        ["USER: ", "image", "\nIs it <image>? ASSISTANT:"],
    ),
    "escape": ([{"role": "user", "content": "<!image> <!!video>"}], ["USER: <!image> <!!video> ASSISTANT:"]),
    "tool": (
        [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": [text("<html><video></html>")]},
        ],
        ['ASSISTANT: {"name": "f", "arguments": {"tag": "<video>"}}'],
    ),
}


@pytest.mark.parametrize(("messages", "pieces"), list(CHATS.values())[:4], ids=list(CHATS)[:4])
@pytest.mark.parametrize("content_format", ["auto", "string"])
def test_in_chat_only_parts_are_media(rendering, messages, pieces, content_format):
    prompt = rendering.chat(messages, content_format=content_format)
    ids = rendering.expected(f"{SYSTEM} {pieces[0]}", *pieces[1:])
    assert prompt["prompt_token_ids"] == ids
    media = {"multi_modal_data": {"image": [picture(1)]}} if "image" in pieces else {}
    assert rendering.generate(prompt=prompt["prompt"], **media)["prompt_token_ids"] == ids
    rendered = rendering.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == prompt["prompt"]


def test_a_history_with_tools(rendering):
    messages, (call,) = CHATS["tool"]
    prompt = rendering.chat(messages)
    decoded = rendering.tokenizer.decode(prompt["prompt_token_ids"])
    assert call in decoded
    assert decoded.endswith("USER: <html><video></html> ASSISTANT:")


def test_the_async_way_is_the_same(rendering):
    for messages, _ in CHATS.values():
        _, (prompt,) = asyncio.run(rendering.renderer.render_chat_async([messages], *rendering.params()))
        assert prompt["prompt_token_ids"] == rendering.chat(messages)["prompt_token_ids"]


STRING_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_templates_that_take_strings(rendering):
    messages = [
        {"role": "user", "content": [text("Is it <image>?"), IMAGE, IMAGE]},
        {"role": "assistant", "content": "<video>"},
        {"role": "user", "content": [text("<image>\nAnd?"), IMAGE]},
    ]
    prompt = rendering.chat(messages, template=STRING_TEMPLATE)
    assert prompt["prompt"] == (
        "user: <image>\n<image>\nIs it <!image>? assistant: <!video> user: <image>\nAnd? assistant:"
    )
    assert prompt["prompt_token_ids"].count(rendering.ids_of["image"]) == 3 * IMAGE_TOKENS


def test_sentinels_are_not_shown(rendering):
    messages = [{"role": "user", "content": [IMAGE, text("<image> and <video>?")]}]
    (conversation,), _ = rendering.renderer.render_chat([messages], *rendering.params(STRING_TEMPLATE))
    assert conversation[0]["content"] == "<image>\n<image> and <video>?"


def test_an_answer_is_continued(rendering):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The <video>"}]
    kwargs = {"add_generation_prompt": False, "continue_final_message": True}
    prompt = rendering.chat(messages, chat_template_kwargs=kwargs)
    assert prompt["prompt_token_ids"] == rendering.expected(f"{SYSTEM} USER: a ASSISTANT: The <video>")


def test_prompts_say_what_they_mean(rendering):
    image = {"multi_modal_data": {"image": picture(1)}}
    ids = rendering.expected("USER: ", "image", "\n<image>?")
    assert rendering.generate(prompt="USER: <image>\n<!image>?", **image)["prompt_token_ids"] == ids
    sentence = (
        "The prompt has 2 <image> placeholders for 1 image; write one for each image, "
        "and <!image> where you mean the characters <image>."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        rendering.generate(prompt="USER: <image>\n<image>?", **image)
    with pytest.raises(ValueError, match=r"^The prompt has 1 <video> .* and <!video> where you mean the characters"):
        rendering.generate(prompt="What is <video>?")


def test_expanded_placeholders_are_taken(rendering):
    frames = [picture(seed, 40, 40) for seed in range(8)]
    media = {"image": [picture(1), picture(2)], "video": [frames]}
    image, video = rendering.ids_of["image"], rendering.ids_of["video"]
    expanded = [1, 5, *[image] * 2 * IMAGE_TOKENS, 6, *[video] * VIDEO_TOKENS, 7]
    mixed = [1, 5, *[image] * 2 * IMAGE_TOKENS, 6, video, 7]
    for token_ids in (expanded, mixed, [1, 5, image, image, 6, video, 7]):
        prompt = rendering.generate(prompt_token_ids=token_ids, multi_modal_data=media)
        assert prompt["prompt_token_ids"] == expanded
        places = {
            modality: [(place.offset, place.length) for place in places]
            for modality, places in prompt["mm_placeholders"].items()
        }
        assert places == {
            "image": [(2, IMAGE_TOKENS), (2 + IMAGE_TOKENS, IMAGE_TOKENS)],
            "video": [(3 + 2 * IMAGE_TOKENS, VIDEO_TOKENS)],
        }
    text = "a" + "<image>" * IMAGE_TOKENS + "b" + "<image>" * IMAGE_TOKENS
    prompt = rendering.generate(prompt=text, multi_modal_data={"image": media["image"]})
    assert prompt["prompt_token_ids"].count(image) == 2 * IMAGE_TOKENS
    half = [1, *[image] * IMAGE_TOKENS, 5, image]
    with pytest.raises(ValueError, match=r"^The prompt has 17 <image> placeholders for 2 images"):
        rendering.generate(prompt_token_ids=half, multi_modal_data={"image": media["image"]})


CUT = {
    "right": (
        [text("dog " * 30), IMAGE],
        {"truncate_prompt_tokens": 20, "truncation_side": "right"},
        " is 20, which cuts images off the prompt; raise truncate_prompt_tokens or shorten the text.",
    ),
    "left, as vLLM sets by default": (
        [IMAGE, IMAGE, text("dog " * 30)],
        {"truncate_prompt_tokens": 10},
        " is 10, which cuts images off the prompt; raise truncate_prompt_tokens or shorten the text.",
    ),
    "long text": (
        [text("dog " * 10_000), IMAGE],
        {"truncate_prompt_tokens": -1, "truncation_side": "right"},
        " is -1, which cuts images off the prompt; shorten the text.",
    ),
    "into an image": (
        [IMAGE, text("a")],
        {"truncate_prompt_tokens": 25, "truncation_side": "left"},
        " is 25, which cuts off an image or a video, wholly or in part; an image takes 16 tokens and a video 136.",
    ),
}


@pytest.mark.parametrize(("parts", "options", "message"), CUT.values(), ids=CUT)
def test_truncation_that_cuts_media_off_says_so(rendering, parts, options, message):
    if "in part" in message and not rendering.truncates_again:
        pytest.skip("this vLLM lets the prompt be longer")
    with pytest.raises(ValueError, match=f"^truncate_prompt_tokens{re.escape(message)}$"):
        rendering.chat([{"role": "user", "content": parts}], **options)


def test_truncation_that_cuts_text_is_done(rendering):
    question = text("Is <video> a tag? " * 20)
    length = 200 if rendering.truncates_again else 200 + IMAGE_TOKENS - 1
    for parts, side, kept in (
        ([IMAGE, question], "right", slice(length)),
        ([question, IMAGE], "left", slice(-length, None)),
        ([question, IMAGE], None, slice(-length, None)),
    ):
        messages = [{"role": "user", "content": parts}]
        whole = rendering.chat(messages)["prompt_token_ids"]
        prompt = rendering.chat(messages, truncate_prompt_tokens=200, truncation_side=side)
        # transformers' tokenizers keep the BOS token when they truncate.
        assert prompt["prompt_token_ids"][1:] == whole[kept][1:]
        (place,) = prompt["mm_placeholders"]["image"]
        assert set(whole[kept][place.offset :][:IMAGE_TOKENS]) == {rendering.ids_of["image"]}
    assert rendering.chat([{"role": "user", "content": "<image> " * 50}], truncate_prompt_tokens=9)


LONG = {
    "media": [IMAGE] * 40,
    "text": [IMAGE, text("Is <image> a dog? " * 60)],
    "text alone": [text("dog " * 600)],
    "both": [IMAGE] * 20 + [text("dog " * 150)],
}


@pytest.mark.parametrize("parts", LONG.values(), ids=LONG)
def test_a_prompt_that_is_too_long_says_what_takes_how_many_tokens(rendering, parts):
    messages = [{"role": "user", "content": parts}]
    # Without a limit, as /tokenize has none.
    whole = rendering.chat(messages, max_total_tokens=None)["prompt_token_ids"]
    assert len(whole) >= MAX_MODEL_LEN
    images = parts.count(IMAGE)
    verb = "s take" if images > 1 else " takes"
    shares = f": {images} image{verb} {16 * images} and text takes {len(whole) - 16 * images}"
    sentence = (
        # What can never fit is refused before anything is fetched, and the text is looked at.
        f"{images} images take {16 * images} tokens; "
        if 16 * images >= MAX_MODEL_LEN
        else f"The prompt has {len(whole)} tokens{shares if images else ''}; "
    ) + "the limit is 600 (max_model_len), answer included."
    for ask in (rendering.chat, lambda messages: asyncio.run(ask_async(rendering, messages))):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            ask(messages)


async def ask_async(rendering, messages):
    return await rendering.renderer.render_chat_async([messages], *rendering.params())


def test_a_text_that_is_far_too_long_is_not_tokenised(rendering):
    messages = [{"role": "user", "content": [IMAGE, text("dog " * 100_000)]}]
    sentence = (
        r"^The prompt has at least (\d+) tokens: 1 image takes 16 and text takes at least (\d+); "
        r"the limit is 600 \(max_model_len\), answer included\.$"
    )
    with pytest.raises(ValueError, match=sentence) as refusal:
        rendering.chat(messages)
    total, of_text = map(int, re.match(sentence, str(refusal.value)).groups())
    assert total == of_text + IMAGE_TOKENS
    assert MAX_MODEL_LEN < of_text < len(rendering.tokenizer.encode("dog " * 100_000))


def test_the_longest_prompt_leaves_one_token_for_the_answer(rendering):
    image = rendering.ids_of["image"]
    media = {"multi_modal_data": {"image": [picture(1)]}}
    fits = [1, image, *[5] * (MAX_MODEL_LEN - IMAGE_TOKENS - 2)]
    assert len(rendering.generate(prompt_token_ids=fits, **media)["prompt_token_ids"]) == MAX_MODEL_LEN - 1
    expanded = [1, *[image] * IMAGE_TOKENS, *[5] * (MAX_MODEL_LEN - IMAGE_TOKENS - 1)]
    for token_ids in ([*fits, 5], expanded):
        with pytest.raises(ValueError, match=r"^The prompt has 600 tokens: 1 image takes 16 and text takes 584; "):
            rendering.generate(prompt_token_ids=token_ids, **media)
