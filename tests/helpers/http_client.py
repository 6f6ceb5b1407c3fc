"""Talking to the OpenAI-compatible server as any client does."""

import base64
import io
import json
import urllib.error
import urllib.request

from PIL import Image

from helpers.refusals import record_reply


def post(server_url: str, path: str, headers: dict[str, str] | None = None, **body) -> tuple[int, dict]:
    """Return the status and the JSON of the answer."""
    all_headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(f"{server_url}{path}", json.dumps(body).encode(), all_headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        reply = json.load(error)
        record_reply(reply)
        return error.code, reply


def chat(server_url: str, *parts, **options) -> tuple[int, dict]:
    messages = [{"role": "user", "content": list(parts)}]
    options = {"messages": messages, "max_tokens": 8, "temperature": 0, **options}
    return post(server_url, "/v1/chat/completions", **options)


def answer(server_url: str, *parts, **options) -> str:
    status, reply = chat(server_url, *parts, **options)
    assert status == 200, reply
    return reply["choices"][0]["message"]["content"]


def assert_refused(server_url: str, status: int, reply: dict, message: str = "") -> None:
    """Check for one sentence that has `message` in it, and that the server lives."""
    assert status == 400, reply
    sentence = reply["error"]["message"]
    assert message in sentence
    assert len(sentence) < 500
    assert "Traceback" not in sentence
    assert answer(server_url, text("Hi"))


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def part(kind: str, url: str) -> dict:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def video_part(data: bytes) -> dict:
    return part("video", data_url(data, "video/mp4"))


def image_part(image: Image.Image, **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return part("image", data_url(buffer.getvalue(), "image/png"))
