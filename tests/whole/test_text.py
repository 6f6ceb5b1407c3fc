"""Conversations whose texts speak of placeholders: `LLM.chat`, the template's text and expanded ids answer alike."""

import pytest

from helpers.asking import clip, picture

STEPS = 6
IMAGE = {"type": "image_pil", "image_pil": picture(3)}


@pytest.fixture(scope="module")
def llm(checkpoint):
    from vllm import LLM

    llm = LLM(str(checkpoint), dtype="float32", enforce_eager=True, max_model_len=1024)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def params():
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=STEPS, logprobs=1, ignore_eos=True)


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def answer(output) -> tuple:
    output_ids = list(output.outputs[0].token_ids)
    assert len(output_ids) == STEPS
    return list(output.prompt_token_ids), output_ids, output.outputs[0].cumulative_logprob


CONVERSATIONS = {
    "text": user(text("How do I embed a <video>?")),
    "string": [{"role": "user", "content": "How do I embed a <video>?"}],
    "image": user(IMAGE, text("Is <image> or <!image> a tag?")),
    "history": [
        {"role": "system", "content": "Write <video>."},
        *user(IMAGE, text("What?")),
        {"role": "assistant", "content": "<video src='a'></video><image>"},
        *user(IMAGE, IMAGE, text("<image><image>\nAnd these?")),
    ],
    "tools": [
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "<html><image></html>"},
        *user(text("So?")),
    ],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_templates_text_and_ids_answer_as_chat_does(llm, params, messages):
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    images = [IMAGE["image_pil"]] * sum(content.count(IMAGE) for content in contents)
    media = {"multi_modal_data": {"image": images}} if images else {}
    (chatted,) = llm.chat(messages, params, use_tqdm=False)
    template = {"conversation": messages, "add_generation_prompt": True}
    prompt = llm.get_tokenizer().apply_chat_template(**template, tokenize=False)
    token_ids = llm.get_tokenizer().apply_chat_template(**template, return_dict=False)
    assert chatted.prompt == prompt
    prompts = [
        {"prompt": prompt, **media},
        {"prompt_token_ids": token_ids, **media},
        # As trainers hand back what they have got.
        {"prompt_token_ids": list(chatted.prompt_token_ids), **media},
    ]
    for output in llm.generate(prompts, params, use_tqdm=False):
        ids, output_ids, logprob = answer(output)
        assert (ids, output_ids) == answer(chatted)[:2]
        assert logprob == pytest.approx(answer(chatted)[2], abs=1e-4)


def test_a_leading_placeholder_is_that_of_the_part(llm, params):
    with_it, without = (
        answer(llm.chat(user(IMAGE, text(question)), params, use_tqdm=False)[0])
        for question in ("<image>\nWhat is this?", "What is this?")
    )
    assert with_it == without


def test_expanded_placeholders_of_a_video_answer_alike(llm, params, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip(4))
    placeholder = llm.get_tokenizer().placeholder_ids["video"]

    def ask(repeats: int) -> tuple:
        token_ids = [1, 300, *[placeholder] * repeats, 13, 301]
        prompt = {"prompt_token_ids": token_ids, "multi_modal_data": {"video": [path]}}
        return answer(llm.generate(prompt, params, use_tqdm=False)[0])[:2]

    single, expanded = ask(1), ask(8 * 17)
    assert single == expanded
    assert len(single[0]) == 4 + 8 * 17
    with pytest.raises(ValueError, match=r"^The prompt has 135 <video> placeholders for 1 video"):
        ask(135)
