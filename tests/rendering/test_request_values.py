"""Which values of a request cannot be brought to the engine."""

import re
from typing import Any

import pytest
from pydantic import BaseModel
from vllm.sampling_params import StructuredOutputsParams

from vllm_videollava.rendering.request_values import check_request
from vllm_videollava.text.unicode import check_text


class Request(BaseModel):
    messages: Any = None
    option: Any = None


def nested(depth: int, kind: type = list) -> Any:
    value = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


DEEP = "The field option is nested too deeply; the limit is 100 levels."
UNICODE = "which is not valid Unicode."
BAD = {
    "lists": (nested(101), DEEP),
    "objects": (nested(101, dict), DEEP),
    "very deep": (nested(100_000), DEEP),
    "both": ({"a": [nested(99, dict)]}, DEEP),
    "within a model": (Request(option=nested(100)), DEEP),
    "within a dataclass": (StructuredOutputsParams(json=nested(100, dict)), DEEP),
    "large": (2**64, "The field option has 18446744073709551616; whole numbers must fit into 64 bits."),
    "very large": (10**5000, "The field option has a very large number; whole numbers must fit into 64 bits."),
    "small": (
        [{"a": -(2**63) - 1}],
        "The field option has -9223372036854775809; whole numbers must fit into 64 bits.",
    ),
    "half a character": ("a\ud800", rf"The field option has 'a\ud800', {UNICODE}"),
    "a key": ({"a": {"\udc00": 1}}, rf"The field option has '\udc00', {UNICODE}"),
}


@pytest.mark.parametrize(("value", "sentence"), BAD.values(), ids=BAD)
def test_what_cannot_be_sent_gets_a_sentence(value, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_request(Request(option=value))


FINE = [
    None,
    True,
    0.5,
    float("nan"),
    2**64 - 1,
    -(2**63),
    "é🎉\0",
    nested(100),
    nested(100, dict),
    [list(range(9))] * 9,
]


@pytest.mark.parametrize("value", FINE)
def test_what_can_be_sent_is_fine(value):
    check_request(Request(option=value))


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
def test_no_field_hides_in_another(name):
    class WithExtras(Request):
        vllm_xargs: Any = None
        kv_transfer_params: Any = None

    for fine in (None, {}, {"a": "kv_transfer_params"}):
        check_request(WithExtras(vllm_xargs=fine))
    with pytest.raises(
        ValueError, match=rf"^The field vllm_xargs has '{name}', which must be a field of the request itself\.$"
    ):
        check_request(WithExtras(vllm_xargs={"a": 1, name: "x"}))
    # As vLLM leaves the request once it has made parameters of it.
    own = {"a": 1}
    check_request(WithExtras(vllm_xargs={"kv_transfer_params": own}, kv_transfer_params=own))


def test_texts_of_messages_are_the_tokenizers_affair():
    check_request(Request(messages=[{"role": "user", "content": "a\ud800"}, {"content": [10**30]}]))
    with pytest.raises(ValueError, match=r"^The field messages is nested too deeply; the limit is 100 levels\.$"):
        check_request(Request(messages=[{"content": nested(99)}]))


def test_arguments_of_a_call_are_parsed():
    def call(arguments: str) -> Request:
        return Request(messages=[{"tool_calls": [{"function": {"arguments": arguments}}]}])

    for fine in ("", "{", '{"a": [1]}', "[" * 90 + "]" * 90, "\ud800"):
        check_request(call(fine))
    with pytest.raises(ValueError, match=r"^The field messages is nested too deeply; the limit is 100 levels\.$"):
        check_request(call("[" * 500 + "]" * 500))
    with pytest.raises(ValueError, match=r"^A tool call's arguments are nested too deeply; the limit is 100 levels\.$"):
        check_request(call("[" * 100_000 + "]" * 100_000))


def test_texts():
    for fine in (None, "", "é🎉\0"):
        check_text("The field option", fine)
    with pytest.raises(ValueError, match=rf"^The field option has '\\ud800', {UNICODE}$"):
        check_text("The field option", "\ud800")
