"""Features of vLLM's server, each with right answers about clips and images of the tiny world."""

import base64
import functools
import http.server
import io
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from helpers.clips import decode_all
from helpers.http_client import data_url, part, post
from helpers.tiny_world import about, ask, connect, draw, question
from vllm_videollava.client import messages
from vllm_videollava.client.server import LocalServer, local_server
from vllm_videollava.tiny.generator import Example

FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--allowed-local-media-path", "/"]
TOKENS = {"image": 49, "video": 400}
COLOURS = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}


def feature(name: str, how: str, *, slow: bool = False):
    return pytest.mark.feature("Server", name, how=how, slow=slow)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return draw(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[LocalServer]:
    # The tiny checkpoint would fill JSON with spaces.
    no_spaces = ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with local_server("tiny", tmp_path_factory.mktemp("server") / "log", *FLAGS, *no_spaces) as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> OpenAI:
    return connect(server.url)


@pytest.fixture(scope="module")
def web(examples) -> Iterator[str]:
    """A web server with the files; the URL ends in a slash."""
    folder = examples[0].media[0].parent
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def jpegs(path: Path) -> str:
    """Return the frames of a clip as a sequence of JPEGs."""
    frames = decode_all(path.read_bytes())
    encoded = []
    for frame in frames[np.linspace(0, len(frames) - 1, 8, dtype=int)]:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return f"data:video/jpeg;base64,{','.join(encoded)}"


WAYS = {
    "file URL": lambda path, web: messages.file_url(path),
    "http URL": lambda path, web: f"{web}{path.name}",
    "base64": lambda path, web: data_url(path.read_bytes(), "video/mp4"),
    "sequence of JPEGs": lambda path, web: jpegs(path),
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, id=way, marks=feature(f"video as {way}", "chat completions")) for way in WAYS]
)
def test_a_video_comes_in_many_ways(client, examples, web, way):
    example = about(examples, "video")
    conversation = messages.question(example.question.text, [part("video", WAYS[way](example.media[0], web))])
    assert ask(client, conversation) == example.question.answer


@pytest.mark.parametrize("kinds", [("image",), ("image", "video"), ("video", "image")])
@feature("images, and images and videos in any order", "chat completions; three orders")
def test_images_and_mixtures(client, examples, kinds):
    example = about(examples, *kinds)
    assert ask(client, question(example)) == example.question.answer


@feature("several turns", "a clip in the first, an image in the second: the prompt has the tokens of both")
def test_media_in_any_turn(client, examples):
    video, image = about(examples, "video"), about(examples, "image")
    second = [{"role": "assistant", "content": video.question.answer}, *question(image)]
    lengths = [
        client.chat.completions.create(model="tiny", messages=conversation, max_tokens=1).usage.prompt_tokens
        for conversation in (question(video), [*question(video), *second])
    ]
    assert lengths[0] > TOKENS["video"]
    assert lengths[1] > lengths[0] + TOKENS["image"]


@feature("streaming and usage", "the chunks are the whole answer, and the tokens are counted")
def test_streaming(client, examples):
    example = about(examples, "video")
    stream = client.chat.completions.create(
        model="tiny", messages=question(example), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == example.question.answer
    assert last.usage.prompt_tokens > 400
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


@feature("several answers and a seed", "`n` 3; the same seed gives the same answers, which differ")
def test_several_answers(client):
    options = {"messages": messages.question("Hi", []), "temperature": 2, "n": 3, "max_tokens": 16}
    drawn = [
        [choice.message.content for choice in client.chat.completions.create(model="tiny", seed=1, **options).choices]
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


@feature("log-probabilities", "`logprobs`, `top_logprobs` and `prompt_logprobs`")
def test_log_probabilities(client, examples):
    reply = client.chat.completions.create(
        model="tiny",
        messages=question(about(examples, "video")),
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body={"prompt_logprobs": 1},
    )
    for step in reply.choices[0].logprobs.content:
        assert step.logprob == step.top_logprobs[0].logprob >= step.top_logprobs[1].logprob
    assert len(reply.prompt_logprobs) == reply.usage.prompt_tokens


@feature("stop words", "`stop`")
def test_stop(client, examples):
    example = about(examples, "video")
    stop = example.question.answer.split()[-1]
    assert ask(client, question(example), stop=[stop]) == example.question.answer.removesuffix(stop).strip()


@feature("structured output", "`response_format` with a JSON schema, and `structured_outputs` with choices")
def test_structured_output(client, examples):
    conversation = question(about(examples, "video"))
    schema = {"type": "json_schema", "json_schema": {"name": "colours", "schema": COLOURS}}
    assert json.loads(ask(client, conversation, response_format=schema))["colour"] in ("red", "blue")
    chosen = ask(client, conversation, extra_body={"structured_outputs": {"choice": ["red", "blue"]}})
    assert chosen in ("red", "blue")


@feature("messages of tools", "a call and its result in the conversation")
def test_messages_of_tools(client, examples):
    example = about(examples, "video")
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    conversation = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Done."},
        *question(example),
    ]
    assert ask(client, conversation)


@feature("an answer that is continued", "`continue_final_message`")
def test_an_answer_is_continued(client, examples):
    example = about(examples, "video")
    begun, _, rest = example.question.answer.partition(" ")
    conversation = [*question(example), {"role": "assistant", "content": begun}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert ask(client, conversation, extra_body=options) == rest


@feature("Responses API", "`/v1/responses` with an image")
def test_responses(client, examples):
    example = about(examples, "image")
    image = {
        "type": "input_image",
        "image_url": data_url(example.media[0].read_bytes(), "image/jpeg"),
        "detail": "auto",
    }
    content = [image, {"type": "input_text", "text": example.question.text}]
    reply = client.responses.create(model="tiny", input=[{"role": "user", "content": content}], temperature=0)
    assert reply.output_text.strip() == example.question.answer


@feature("Anthropic's messages", "`/v1/messages` with an image")
def test_anthropic_messages(server, examples):
    example = about(examples, "image")
    data = base64.b64encode(example.media[0].read_bytes()).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": data}}
    content = [image, {"type": "text", "text": example.question.text}]
    status, reply = post(
        server.url,
        "/v1/messages",
        model="tiny",
        messages=[{"role": "user", "content": content}],
        max_tokens=48,
        temperature=0,
    )
    assert status == 200, reply
    assert reply["content"][0]["text"].strip() == example.question.answer


@feature("completions", "`/v1/completions` without media")
def test_completions(client):
    assert client.completions.create(model="tiny", prompt="USER: Hi ASSISTANT:", max_tokens=4).choices[0].text


@feature("tokens of a conversation with media", "`/tokenize` counts what the answer's usage counts")
def test_tokenize(server, client, examples):
    conversation = question(about(examples, "video"))
    status, reply = post(server.url, "/tokenize", model="tiny", messages=conversation)
    assert status == 200, reply
    usage = client.chat.completions.create(model="tiny", messages=conversation, max_tokens=1).usage
    assert reply["count"] == len(reply["tokens"])
    assert usage.prompt_tokens >= reply["count"]


@feature("a video that the server knows", "`uuid` with the video, and then without")
def test_uuids(client, examples):
    example = about(examples, "video")
    (whole,) = question(example)
    video, asked = whole["content"]
    assert ask(client, [{**whole, "content": [{**video, "uuid": "mine"}, asked]}]) == example.question.answer
    alone = {"type": "video_url", "video_url": None, "uuid": "mine"}
    assert ask(client, [{**whole, "content": [alone, asked]}]) == example.question.answer


@feature("metrics", "`/metrics` counts the answers")
def test_metrics(server, client, examples):
    def successes() -> float:
        with urllib.request.urlopen(f"{server.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{"))

    before = successes()
    ask(client, question(about(examples, "video")))
    assert successes() == before + 1
