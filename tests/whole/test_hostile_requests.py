"""Requests that vLLM alone answers with 5xx, or dies of: each is refused with a sentence, or answered."""

import json

import pytest
import requests

from helpers.asking import picture
from helpers.clips import encode_clip, smooth_frames
from helpers.http_client import answer, assert_refused, chat, image_part, post, text, video_part


def nested(depth: int) -> str:
    return "[" * depth + "1" + "]" * depth


CALL = (
    '{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": %s}}]}'
)
DEEP = {
    "kv_transfer_params": '"kv_transfer_params": {"a": %s}',
    "ec_transfer_params": '"ec_transfer_params": {"a": %s}',
    "structured_outputs": '"structured_outputs": {"json": {"a": %s}}',
    "chat_template_kwargs": '"chat_template_kwargs": {"a": %s}',
    "mm_processor_kwargs": '"mm_processor_kwargs": {"a": %s}',
    "messages": '"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "uuid": %s}]}]',
}


@pytest.mark.parametrize("depth", [101, 300, 700, 900])
@pytest.mark.parametrize("field", DEEP)
def test_deep_nesting_is_refused(server_url, field, depth):
    # Of what is nested 400 to 990 deep the engine would die.
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    body |= json.loads(f"{{{DEEP[field] % nested(depth)}}}")
    status, reply = post(server_url, "/v1/chat/completions", **body)
    assert_refused(server_url, status, reply, f"The field {field} is nested too deeply; the limit is 100 levels.")


@pytest.mark.parametrize("depth", [200, 900, 5000, 100_000])
def test_deep_arguments_of_a_call_are_refused(server_url, depth):
    call = json.loads(CALL % json.dumps(f'{{"a": {nested(depth)}}}'))
    messages = [{"role": "user", "content": "Hi"}, call, {"role": "user", "content": "And?"}]
    status, reply = post(server_url, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert_refused(server_url, status, reply, "the limit is 100 levels.")


@pytest.mark.parametrize("field", ["kv_transfer_params", "ec_transfer_params"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 1}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 1}),
    ],
)
def test_deep_nesting_is_refused_everywhere(server_url, path, body, field):
    status, reply = post(server_url, path, **body, **{field: {"a": json.loads(nested(800))}})
    assert_refused(server_url, status, reply, f"The field {field} is nested too deeply; the limit is 100 levels.")


def test_what_is_nested_as_usual_is_answered(server_url):
    schema = {"type": "object"}
    for _ in range(8):
        schema = {"type": "object", "properties": {"a": schema}}
    status, reply = chat(server_url, text("Hi"), structured_outputs={"json": schema}, max_tokens=1)
    assert status == 200, reply
    status, reply = chat(server_url, text("Hi"), kv_transfer_params={"a": json.loads(nested(99))}, max_tokens=1)
    assert status == 200, reply


UNSENDABLE = {
    "top_k": (2**70, "The field top_k has 1180591620717411303424; whole numbers must fit into 64 bits."),
    "vllm_xargs": (
        {"a": -(2**64)},
        "The field vllm_xargs has -18446744073709551616; whole numbers must fit into 64 bits.",
    ),
    "stop": (["a", "\ud800"], r"The field stop has '\ud800', which is not valid Unicode."),
    "request_id": ("\udfff", r"The field request_id has '\udfff', which is not valid Unicode."),
    "chat_template_kwargs": (
        {"x": 2**70},
        "The field chat_template_kwargs has 1180591620717411303424; whole numbers must fit into 64 bits.",
    ),
    "kv_transfer_params": (
        {"a": [{"\ud800": 1}]},
        r"The field kv_transfer_params has '\ud800', which is not valid Unicode.",
    ),
}


@pytest.mark.parametrize(("field", "value", "sentence"), [(name, *rest) for name, rest in UNSENDABLE.items()])
def test_what_cannot_be_sent_to_the_engine_is_refused(server_url, field, value, sentence):
    assert_refused(server_url, *chat(server_url, text("Hi"), **{field: value}), sentence)


def test_no_field_hides_in_another(server_url):
    status, reply = chat(server_url, text("Hi"), vllm_xargs={"kv_transfer_params": "x"})
    assert_refused(
        server_url,
        status,
        reply,
        "vllm_xargs has 'kv_transfer_params', which must be a field of the request itself.",
    )
    status, reply = chat(server_url, text("Hi"), vllm_xargs={"a": 1}, kv_transfer_params={"a": 1}, max_tokens=1)
    assert status == 200, reply


REFUSED_LATE = {
    "logit_bias": {"384": 1},
    "temperature": 5,
    "stop_token_ids": [999],
    "structured_outputs": {"regex": "("},
    "prompt_logprobs": 500,
    "min_tokens": 10**6,
}


@pytest.mark.parametrize("field", REFUSED_LATE)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_refused_request_spoils_nothing_for_the_next(server_url, kind, field):
    seed = 1000 + list(REFUSED_LATE).index(field)
    medium = image_part(picture(seed)) if kind == "image" else video_part(encode_clip(smooth_frames(9, 48, 64, seed)))
    body = {"messages": [{"role": "user", "content": [medium]}], field: REFUSED_LATE[field]}
    # The sentence is vLLM's.
    assert requests.post(f"{server_url}/v1/chat/completions", json=body).status_code == 400
    assert answer(server_url, medium, text("What?"))


def test_ids_beyond_the_vocabulary_are_refused_in_scoring(server_url):
    # Token ids that do not go through the renderer; the vocabulary has 384.
    for query in ([384], [5, 384], [385], [2**31]):
        body = {"query": query, "items": [[5]], "label_token_ids": [6]}
        assert requests.post(f"{server_url}/generative_scoring", json=body).status_code == 400


def test_scoring_is_refused_beside_others_answers(server_url):
    # vLLM's first model runner, which the CPU has, would give its log-probabilities to them.
    scoring = {"query": [383], "items": [[5]], "label_token_ids": [6]}
    sentence = "logprob_token_ids and /generative_scoring need vLLM's model runner V2, which is not in use."
    assert_refused(server_url, *post(server_url, "/generative_scoring", **scoring), sentence)
    status, reply = chat(server_url, text("Hi"), logprobs=True, logprob_token_ids=[7], max_tokens=1)
    assert_refused(server_url, status, reply, sentence)


@pytest.mark.parametrize(
    ("parts", "echoed"),
    [
        ([image_part(picture(7)), text("It is")], "<image>\nIt is"),
        ([text("It"), image_part(picture(7)), text("is")], "It\n<image>\nis"),
        ([text("It is")], "It is"),
    ],
)
def test_a_message_with_media_is_echoed(server_url, parts, echoed):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]
    options = {"echo": True, "add_generation_prompt": False, "continue_final_message": True, "max_tokens": 1}
    status, reply = post(server_url, "/v1/chat/completions", messages=messages, **options)
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"].startswith(echoed)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_an_id_alone_stands_for_what_came_with_it(server_url, kind):
    medium = image_part(picture(8)) if kind == "image" else video_part(encode_clip(smooth_frames(9, 48, 64, 8)))
    alone = {"type": f"{kind}_url", f"{kind}_url": None, "uuid": f"hostile {kind}"}
    messages = [{"role": "user", "content": [alone, text("What?")]}]
    # The sentence is vLLM's.
    assert requests.post(f"{server_url}/v1/chat/completions", json={"messages": messages}).status_code == 400
    whole = answer(server_url, {**medium, "uuid": alone["uuid"]}, text("What?"))
    assert answer(server_url, alone, text("What?")) == whole


@pytest.mark.parametrize("kind", ["image", "video"])
def test_an_id_that_is_not_unicode_is_refused(server_url, kind):
    medium = image_part(picture(9)) if kind == "image" else video_part(encode_clip(smooth_frames(9, 48, 64, 9)))
    status, reply = chat(server_url, {**medium, "uuid": "a\ud800"}, text("What?"))
    assert_refused(server_url, status, reply, rf"The {kind}'s uuid has 'a\ud800', which is not valid Unicode.")
