"""Strategies for requests to a server: every field of its own OpenAPI description, with media in them."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from helpers.attack_media import data_urls, image_url, video_url

Json = Any
Strategy = st.SearchStrategy

MAX_FIELDS, MAX_DEPTH = 4, 4
# Placeholders, the ends of the vocabulary, and what lies beyond it.
TOKEN_IDS = [0, 1, 2, 5, 257, 258, 383, 384, -1, -(2**31), 2**31, 2**63 - 1, 2**63, 2**64, 10**30]
TEXTS = [
    "a",
    "",
    " ",
    "<image>",
    "<video>",
    "<!image>",
    "<image>" * 16,
    "</s>",
    "\0",
    "\ud800",
    "\udfff\n",
    "é🎉\u202e",
]
NUMBERS = [
    *(0, 1, 2, 3, -1, -2, 20, 21, 1e-9, 0.5, 0.99, 1.5, -0.0, float("nan"), float("inf"), float("-inf"), 1e308),
    *(2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30),
]
JUNK = [None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"a": [1]}}, "x" * 20_000, *TEXTS, *NUMBERS]

one_of = st.sampled_from


def weighted(*choices: tuple[int, Strategy]) -> Strategy:
    """Choose as often as the weights say; Hypothesis's own `|` takes each choice once."""
    strategies = [strategy for weight, strategy in choices for _ in range(weight)]
    return one_of(strategies).flatmap(lambda strategy: strategy)


texts = one_of(TEXTS) | st.text(max_size=8)
token_ids = weighted((1, one_of(TOKEN_IDS)), (3, st.integers(0, 383)))
junk = one_of(JUNK)
uuids = one_of(["a", "a", "b", "image-a", "\ud800", "x" * 3000, "", 1, None, {}])
urls = one_of(data_urls())
good_urls = one_of([image_url(), video_url()])
URL_KINDS = ["image_url", "video_url", "audio_url", "input_image", "image_pil", "image_embeds", "video_embeds", "image"]


@st.composite
def chat_parts(draw) -> Json:
    kind = draw(one_of(["image_url"] * 4 + ["video_url"] * 4 + URL_KINDS))
    right = st.just(image_url() if kind == "image_url" else video_url())
    url = draw(weighted((6, right), (2, good_urls), (4, urls), (1, junk)))
    value = draw(one_of([{"url": url}, {"url": url}, {"url": url, "detail": "low"}, url, None, [url], {}]))
    part = {"type": kind, kind: value}
    if draw(one_of([False, False, True])):
        part["uuid"] = draw(uuids)
    if draw(one_of([False, False, False, True])):
        part.pop(draw(one_of([kind, "type"])))
    return part


plain_parts = st.builds(lambda text: {"type": "text", "text": text}, texts)
odd_parts = one_of(
    [
        {"type": "refusal", "refusal": "<image>"},
        {"type": "thinking", "thinking": "<video>"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "prompt_embeds", "prompt_embeds": "AAAA"},
        {"type": "tool_reference", "name": "a"},
        {"type": "file", "file": {"file_data": "AAAA"}},
        "text",
        {},
        None,
    ]
)
parts = weighted((8, chat_parts()), (8, plain_parts), (1, odd_parts))
contents = weighted((12, st.lists(parts, max_size=4)), (6, texts), (1, junk))
roles = one_of([*["user"] * 8, *["assistant"] * 3, "system", "developer", "tool", "function", "x", None])
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "<image>"}'}}]
messages = st.fixed_dictionaries(
    {"role": roles, "content": contents},
    optional={
        "name": weighted((6, texts), (1, junk)),
        "tool_call_id": weighted((6, texts), (1, junk)),
        "tool_calls": weighted((12, st.just(CALLS)), (1, junk)),
        "reasoning": weighted((6, texts), (1, junk)),
    },
)


def _question(*parts: Json) -> list[Json]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


IMAGE = {"type": "image_url", "image_url": {"url": image_url()}}
VIDEO = {"type": "video_url", "video_url": {"url": video_url()}}
good_conversations = one_of(
    [
        _question(IMAGE),
        _question(VIDEO),
        _question(IMAGE, VIDEO, IMAGE),
        _question({**IMAGE, "uuid": "a"}, {**VIDEO, "uuid": "a"}),
        _question({**IMAGE, "uuid": "a"}, {"type": "image_url", "image_url": None, "uuid": "b"}),
        _question({"type": "video_url", "video_url": None, "uuid": "a"}),
        _question(),
    ]
)
conversations = weighted((2, good_conversations), (1, st.lists(messages, min_size=1, max_size=4)))

response_parts = st.builds(
    lambda kind, url, extra: {"type": kind, "image_url": url, "video_url": url, "text": url, **extra},
    one_of(["input_image", "input_image", "input_text", "input_video", "input_file", "output_text", "image_url"]),
    good_urls | urls | junk,
    one_of([{}, {"detail": "auto"}, {"detail": 1}, {"file_id": "a"}, {"annotations": []}]),
)
response_input = texts | st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": texts | st.lists(response_parts | odd_parts, max_size=3)},
        optional={"type": one_of(["message", "reasoning", "function_call", "x"]), "id": texts, "status": texts},
    )
    | junk,
    max_size=3,
)
blocks = st.fixed_dictionaries(
    {"type": one_of(["image", "image", "image", "text", "tool_result", "tool_use", "thinking", "document"])},
    optional={
        "source": st.builds(
            lambda kind, url: {"type": kind, "media_type": "image/png", "data": str(url).split(",")[-1], "url": url},
            one_of(["base64", "base64", "url", "file", None]),
            good_urls | urls | junk,
        )
        | junk,
        "text": texts,
        "content": texts | junk,
        "id": texts,
        "tool_use_id": texts,
        "name": texts,
        "input": junk,
        "thinking": texts,
    },
)
anthropic_messages = st.lists(
    st.fixed_dictionaries(
        {"role": one_of(["user", "user", "assistant", "system"]), "content": texts | st.lists(blocks, max_size=3)}
    ),
    min_size=1,
    max_size=3,
)
prompts = weighted(
    (4, texts),
    (2, one_of(["A chat. USER: Hi ASSISTANT:", "<image>", "a<video>"])),
    (4, st.lists(token_ids, max_size=8)),
    (2, st.lists(texts, max_size=3)),
    (2, st.lists(st.lists(token_ids, max_size=4), max_size=3)),
    (1, junk),
)
SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "string", "pattern": "(a|b)*", "minLength": 10**9},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"type": "array", "items": {"type": "integer", "multipleOf": 0.1}, "uniqueItems": True},
    {"enum": []},
    {"type": "x"},
    {"not": {}},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {},
    "{",
    "",
    "null",
    True,
    {"type": "string", "pattern": "("},
    {"type": "integer", "minimum": 10**30},
]
REGEXES = [
    "a",
    "",
    "(",
    "[",
    "a{3}",
    "(?=a)",
    r"\d+\b",
    "(a*)*",
    "\0",
    "\ud800",
    "^$",
    "[^\\x00-\\xff]",
    ".{2,5}",
    r"\p{L}",
]
GRAMMARS = ['root ::= "a"', "root ::= root", "", "x", 'start: "a"', "root ::= ", 'root ::= "\ud800"', "?start: a\na: a"]
TAGS = ["{}", '{"structures": [], "triggers": []}', '{"type": "structural_tag", "format": {"type": "x"}}', "x", ""]
structured_outputs = st.dictionaries(
    one_of(["json", "regex", "choice", "grammar", "json_object", "structural_tag", "whitespace_pattern", "_backend"]),
    one_of([*SCHEMAS, *REGEXES, *GRAMMARS, *TAGS, ["a", "b"], [], [""], ["\ud800"], True, False, None, 1]),
    min_size=1,
    max_size=2,
) | st.one_of(
    *(
        st.builds(lambda value, key=key: {key: value}, one_of(values))
        for key, values in {"json": SCHEMAS, "regex": REGEXES, "grammar": GRAMMARS, "structural_tag": TAGS}.items()
    )
)
media_options = one_of(
    [
        {},
        {"video": {"num_frames": 8, "fps": -1}},
        {"video": {"num_frames": 16}},
        {"video": {"num_frames": 10**30}},
        {"video_llava": {"image_size": 112}},
        {"image": {"rgba_background_color": [0, 128, 255]}},
        {"image": {"rgba_background_color": [0, 128, 256]}},
        {"image": {"image_mode": "L"}},
        {"video": {"video_backend": "opencv", "frames_indices": [0]}},
    ]
) | st.dictionaries(
    one_of(["image", "video", "audio", "video_llava", "\ud800"]),
    st.dictionaries(one_of(["num_frames", "fps", "image_mode", "rgba_background_color", "x", "timeout_sec"]), junk),
    max_size=2,
)
processor_options = one_of([{"image_aspect_ratio": "pad"}, {"image_aspect_ratio": None}]) | st.dictionaries(
    one_of(["image_aspect_ratio", "device", "images", "videos", "self", "text", "return_tensors", "size", "\ud800"]),
    junk,
    max_size=3,
)
transfer_options = one_of(
    [
        {"do_remote_prefill": True, "remote_block_ids": [0], "remote_engine_id": "a", "remote_port": -1},
        {"do_remote_decode": True},
        {"prompt_token_ids": [1, 257, 384, -1]},
        {"a": 2**70},
        {"a": "\ud800"},
    ]
) | st.dictionaries(texts, junk, max_size=2)
templates = one_of(
    [
        "{{ messages }}",
        "<image>",
        "<image><video>{{ messages[0].content }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% for c in m.content %}<image>{% endfor %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% raise %}",
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[10**6].content }}",
        "\ud800",
    ]
)
tools = one_of(
    [
        [{"type": "function", "function": {"name": "f", "description": "<image>", "parameters": schema}}]
        for schema in SCHEMAS[:4]
    ]
    + [[], [{}], [{"type": "function", "name": "f", "parameters": {}}]]
)

# What is likely to do something in a field of that name, wherever it stands.
FIELDS: dict[str, Strategy] = {
    "model": one_of([None, None, "", "x", "\ud800", 1]),
    "logit_bias": st.dictionaries(token_ids.map(str) | texts, one_of(NUMBERS), max_size=3),
    "stop": texts | st.lists(texts, max_size=3),
    "stop_token_ids": st.lists(token_ids, max_size=3),
    "allowed_token_ids": st.lists(token_ids, max_size=3),
    "logprob_token_ids": st.lists(token_ids, max_size=3),
    "label_token_ids": st.lists(token_ids, max_size=3),
    "bad_words": st.lists(texts | one_of(["<image>", "a", "the dog", "<0xFE>"]), max_size=3),
    # More than a few would be answered, in their time.
    "n": one_of([0, 1, 2, 3, -1, 10**5, 2**31, 2**63, 10**30, None, 1.5, "2"]),
    "best_of": one_of([0, 1, 2, -1, 2**63, None]),
    "max_tokens": one_of([0, 1, 2, 3, -1, 1.5, "1"]),
    "max_completion_tokens": one_of([0, 1, 2, -1, 2**63]),
    "max_output_tokens": one_of([0, 1, 2, -1]),
    "min_tokens": one_of([0, 1, 2, 3, -1, 2**63]),
    "logprobs": one_of([True, False, None, 0, 1, 5, 20, 21, -1, 2**31]),
    "top_logprobs": one_of([None, 0, 1, 5, 20, 21, -1, 2**31]),
    "prompt_logprobs": one_of([None, 0, 1, 5, 20, 21, -1, 2**31]),
    "truncate_prompt_tokens": one_of([-1, 0, 1, 10, 20, 30, 100, 2**31, 2**63 - 1, 2**63, -2]),
    "response_format": structured_outputs.map(lambda value: {"type": "json_schema", "json_schema": {"schema": value}})
    | one_of(
        [
            {"type": "json_object"},
            {"type": "text"},
            {"type": "json_schema"},
            *(
                {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
                for schema in SCHEMAS
            ),
            {"type": "structural_tag", "format": {"type": "any_text"}},
            {"type": "structural_tag", "structures": [], "triggers": []},
        ]
    ),
    "structured_outputs": structured_outputs,
    "media_io_kwargs": media_options,
    "mm_processor_kwargs": processor_options,
    "kv_transfer_params": transfer_options,
    "ec_transfer_params": transfer_options,
    "vllm_xargs": st.dictionaries(
        texts | one_of(["kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"]),
        texts | one_of(NUMBERS) | st.lists(texts | one_of(NUMBERS), max_size=2),
        max_size=2,
    ),
    "chat_template": templates,
    "chat_template_kwargs": st.dictionaries(
        one_of(["messages", "tools", "add_generation_prompt", "tokenize", "conversation", "chat_template", "x"]),
        junk | templates,
        max_size=2,
    ),
    "cache_salt": one_of(["a", "b", "\ud800", "", "x" * 2000]),
    "request_id": one_of(["a", "a", "", "\ud800", "x" * 5000, "a\nb"]),
    "priority": one_of([0, 0, 1, -1, 2**63 - 1, 2**63]),
    "tools": tools,
    "tool_choice": one_of(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}, "x", {}]),
    "prompt_embeds": one_of(["", "AAAA", ["AAAA"], []]),
    "stream_options": one_of([{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}, {}]),
    "repetition_detection": st.dictionaries(
        one_of(["max_pattern_size", "min_pattern_size", "min_count"]), one_of([0, 1, 2, 3, -1, 2**31, 2**63])
    ),
    "documents": one_of([[{"title": "<image>", "text": "a"}], [], [{}]]),
    "images": st.lists(urls | good_urls, max_size=2),
    "videos": st.lists(urls | good_urls, max_size=2),
    "tokens": st.lists(token_ids, max_size=5),
    "prompt": prompts,
}


class Requests:
    """Requests to a server, made from its own OpenAPI description.

    Args:
        openapi: the description.
        model: the model's name, which some requests need.

    Attributes:
        fields: the fields that are known to it, by path.
    """

    def __init__(self, openapi: Mapping[str, Any], model: str) -> None:
        self._model = model
        self._schemas = openapi["components"]["schemas"]
        self.fields = {path: self._fields(path, openapi) for path in BASES if path in openapi["paths"]}

    def _fields(self, path: str, openapi: Mapping[str, Any]) -> dict[str, Json]:
        body = openapi["paths"][path]["post"].get("requestBody")
        if body is None:
            # What it takes is not said.
            return {}
        schema = body["content"]["application/json"]["schema"]
        fields = {}
        for one in schema.get("anyOf", [schema]):
            fields |= self._resolve(one)["properties"]
        return fields

    def _resolve(self, schema: Json) -> Json:
        while isinstance(schema, dict) and "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema

    def value(self, schema: Json, depth: int = MAX_DEPTH) -> Strategy:
        """Return values that a schema allows, or almost."""
        schema = self._resolve(schema)
        choices = schema.get("anyOf") or schema.get("oneOf")
        if not depth:
            return junk
        if choices:
            return st.one_of([self.value(choice, depth) for choice in choices])
        if "enum" in schema or "const" in schema:
            return one_of(schema.get("enum") or [schema["const"]])
        match schema.get("type"):
            case "object":
                extra = schema.get("additionalProperties")
                optional = {
                    name: self.field(name, property_, depth - 1)
                    for name, property_ in schema.get("properties", {}).items()
                }
                required = {name: optional.pop(name) for name in schema.get("required", ()) if name in optional}
                known = st.fixed_dictionaries(required, optional=optional)
                if not isinstance(extra, dict):
                    return known
                return st.builds(
                    lambda one, other: {**one, **other},
                    known,
                    st.dictionaries(texts, self.value(extra, depth - 1), max_size=2),
                )
            case "array":
                return st.lists(self.value(schema.get("items", {}), depth - 1), max_size=2)
            case "boolean":
                return st.booleans()
            case "integer" | "number":
                return one_of(NUMBERS)
            case "string":
                return texts
            case "null":
                return st.none()
            case _:
                return junk

    def field(self, name: str, schema: Json, depth: int = MAX_DEPTH) -> Strategy:
        """Return values for a field, most of them of the right type."""
        if name in FIELDS:
            return FIELDS[name] if name in NOT_ANY else weighted((5, FIELDS[name]), (1, self.value(schema, depth)))
        return weighted((6, self.value(schema, depth)), (1, junk))

    def bodies(self, path: str) -> Strategy:
        """Return bodies for a path: its usual fields, and up to five others with whatever values."""
        if path == "/invocations":
            return st.one_of([self.bodies(other) for other in ("/v1/chat/completions", "/v1/completions")])
        values = {name: self.field(name, schema) for name, schema in self.fields[path].items()}
        optional = sorted(values.keys() - NEEDED)
        names = st.lists(one_of(optional), max_size=MAX_FIELDS, unique=True) if optional else st.just([])
        spoilt = one_of([*[None] * 15, *sorted(NEEDED & values.keys())])

        @st.composite
        def body(draw) -> Json:
            result = dict(draw(BASES[path]))
            if "model" in result:
                result["model"] = self._model
            for name in draw(names):
                result[name] = draw(values[name])
            if (name := draw(spoilt)) is not None:
                result[name] = draw(junk)
            return result

        return body()

    def requests(self) -> Strategy:
        """Return pairs of a path and a body, more of them for what makes most of the engine."""
        return weighted(*((WEIGHTS.get(path, 2), st.tuples(st.just(path), self.bodies(path))) for path in self.fields))


WEIGHTS = {"/v1/chat/completions": 8, "/v1/completions": 4, "/v1/responses": 4, "/v1/messages": 4, "/v1/systemone": 1}
# Fields whose other values make a server work for as long as they say, as they should.
NOT_ANY = {"n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens"}


# Fields that make the rest worth reading.
NEEDED = {"messages", "input", "prompt", "tokens", "questions"}


def _base(**fields: Strategy) -> Strategy:
    return st.fixed_dictionaries(fields)


BASES: dict[str, Strategy] = {
    "/v1/chat/completions": _base(messages=conversations, max_tokens=st.just(2)),
    "/v1/chat/completions/batch": _base(
        messages=st.lists(conversations, min_size=1, max_size=2), max_tokens=st.just(2)
    ),
    "/v1/completions": _base(prompt=prompts, max_tokens=st.just(2)),
    "/v1/responses": _base(input=response_input, max_output_tokens=st.just(2)),
    "/v1/messages": _base(model=st.none(), messages=anthropic_messages, max_tokens=st.just(2)),
    "/v1/messages/count_tokens": _base(model=st.none(), messages=anthropic_messages),
    "/tokenize": _base(messages=conversations) | _base(prompt=texts),
    "/detokenize": _base(tokens=st.lists(token_ids, max_size=5)),
    "/generative_scoring": _base(
        query=texts | st.lists(token_ids, max_size=3),
        items=st.lists(texts, max_size=2) | st.lists(st.lists(token_ids, max_size=3), max_size=2),
        label_token_ids=st.lists(token_ids, max_size=3),
    ),
    "/v1/systemone": _base(
        state=texts,
        questions=st.dictionaries(
            texts, st.fixed_dictionaries({"type": one_of(["bool", "x", "choice"])}, optional={"criteria": junk})
        ),
        images=st.lists(good_urls, max_size=1),
        videos=st.lists(good_urls, max_size=1),
    ),
    "/invocations": st.just({}),
}
