"""A running OpenAI-compatible server: media in every way, bad input gets a sentence and HTTP 400, the server lives."""

import base64
import contextlib
import functools
import http.server
import io
import json
import re
import threading
import urllib.request

import numpy as np
import pytest
from PIL import Image

from helpers.clips import encode_clip, smooth_frames
from helpers.faulty_http import faulty_server
from helpers.http_client import answer, assert_refused, chat, data_url, image_part, part, post, text, video_part


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with a clip, a photograph and junk, and its address on a web server of this process."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "clip.mp4").write_bytes(encode_clip(smooth_frames(20, 120, 160)))
    Image.fromarray(smooth_frames(1, 100, 140)[0]).save(folder / "photo.jpg")
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("not a medium")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("kind", "name", "media_type"), [("video", "clip.mp4", "video/mp4"), ("image", "photo.jpg", "image/jpeg")]
)
def test_file_url_and_base64_agree(server_url, media, kind, name, media_type):
    folder, address = media
    path = folder / name
    urls = [path.as_uri(), f"{address}/{name}", data_url(path.read_bytes(), media_type)]
    answers = [answer(server_url, part(kind, url), text("What is this?")) for url in urls]
    assert answers[0]
    assert len(set(answers)) == 1


def test_media_change_the_answer(server_url):
    logprobs = []
    for seed in (1, 2):
        video = video_part(encode_clip(smooth_frames(10, 64, 96, seed)))
        _, reply = chat(server_url, video, text("What?"), logprobs=True)
        logprobs.append([step["logprob"] for step in reply["choices"][0]["logprobs"]["content"]])
    assert logprobs[0] != pytest.approx(logprobs[1], abs=0.05)


def test_a_mix_and_several_turns(server_url, media):
    folder, _ = media
    video, image = (
        part(kind, (folder / name).as_uri()) for kind, name in (("video", "clip.mp4"), ("image", "photo.jpg"))
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [video, image, text("Are they alike?")]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": [image, text("And this?")]},
    ]
    status, reply = post(server_url, "/v1/chat/completions", messages=messages, max_tokens=4)
    assert status == 200
    # A video is 8 frames of 17 tokens, an image 16 tokens at this checkpoint's 56 pixels.
    assert reply["usage"]["prompt_tokens"] > 8 * 17 + 2 * 16


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 7])
def test_short_clips(server_url, num_frames):
    data = encode_clip(smooth_frames(num_frames, 98, 66))
    assert answer(server_url, video_part(data), text("What?"))


IMAGES = {
    "odd": Image.fromarray(smooth_frames(1, 33, 51)[0]),
    "portrait": Image.fromarray(smooth_frames(1, 150, 40)[0]),
    "tiny": Image.new("RGB", (1, 1), "red"),
    "grey": Image.new("L", (40, 30), 90),
    "RGBA": Image.new("RGBA", (40, 30), (200, 10, 10, 128)),
    "palette": Image.fromarray(smooth_frames(1, 40, 50)[0]).convert("P"),
    "16 bits": Image.fromarray(np.full((20, 20), 40000, np.uint16)),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_images_of_every_kind(server_url, image):
    assert answer(server_url, image_part(image), text("What?"))


def test_a_rotated_photograph_answers_as_an_upright_one(server_url):
    pixels = smooth_frames(1, 40, 60)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = answer(server_url, image_part(Image.fromarray(pixels), exif=exif), text("What?"))
    upright = answer(server_url, image_part(Image.fromarray(np.rot90(pixels, -1))), text("What?"))
    assert rotated == upright


def test_padding_is_an_option(server_url, media):
    image = part("image", (media[0] / "photo.jpg").as_uri())
    _, cropped = chat(server_url, image, text("What?"), logprobs=True)
    _, padded = chat(server_url, image, text("What?"), logprobs=True, mm_processor_kwargs={"image_aspect_ratio": "pad"})
    assert cropped["choices"][0]["logprobs"] != padded["choices"][0]["logprobs"]
    status, reply = chat(server_url, image, text("What?"), mm_processor_kwargs={"image_aspect_ratio": "fill"})
    assert_refused(
        server_url, status, reply, "mm_processor_kwargs.image_aspect_ratio is 'fill'; it must be 'pad' or null."
    )


STRANGE = [
    "\x00\x01\x02\x1b",
    "a\ud800b",
    "<s></s><unk>",
    "<0xFE><0xFF>",
    "𐍈 🎉 \u202e",
    "▁▁",
    "\ufffd" * 50,
    " ",
    "a" * 1000,
]


@pytest.mark.parametrize("content", STRANGE)
def test_no_text_hurts_the_engine(server_url, content):
    options = {"repetition_penalty": 1.3, "presence_penalty": 1.0, "frequency_penalty": 1.0, "prompt_logprobs": 2}
    video = video_part(encode_clip(smooth_frames(9, 64, 64)))
    for parts in ([text(content)], [video, text(content)]):
        status, reply = chat(server_url, *parts, **options)
        assert status == 200, reply


def test_completions_without_media(server_url):
    status, reply = post(server_url, "/v1/completions", prompt="A chat. USER: Hi ASSISTANT:", max_tokens=4)
    assert status == 200
    assert reply["choices"][0]["text"]


@pytest.mark.parametrize("name", ["empty", "text"])
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("way", ["file", "url", "base64"])
def test_junk_is_refused(server_url, media, kind, name, way):
    folder, address = media
    path = folder / name
    url = {
        "file": path.as_uri(),
        "url": f"{address}/{name}",
        "base64": data_url(path.read_bytes(), "video/mp4" if kind == "video" else "image/png"),
    }[way]
    assert_refused(server_url, *chat(server_url, part(kind, url), text("What?")))


PLACEHOLDERS = {
    "no media": ("What is <image>?", "1 <image> placeholder for 0 images"),
    "video too": ("<video><image>", "1 <image> placeholder for 0 images"),
    "escaped and not": ("<!video><video>", "1 <video> placeholder for 0 videos"),
}


@pytest.mark.parametrize(("prompt", "message"), PLACEHOLDERS.values(), ids=PLACEHOLDERS)
def test_more_placeholders_than_media_are_refused(server_url, prompt, message):
    status, reply = post(server_url, "/v1/completions", prompt=prompt, max_tokens=1)
    assert_refused(server_url, status, reply, message)
    escaped = re.sub("<!*(image|video)>", r"<!\1>", prompt)
    status, reply = post(server_url, "/v1/completions", prompt=escaped, max_tokens=1, echo=True)
    assert status == 200
    assert reply["choices"][0]["text"].startswith(escaped)


def tokens(server_url: str, messages: list[dict]) -> list[int]:
    status, reply = post(server_url, "/tokenize", messages=messages)
    assert status == 200, reply
    return reply["tokens"]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"tag": "<video>"}'}}
PHOTO = image_part(Image.new("RGB", (30, 30), "red"))
CONVERSATIONS = {
    "question": ([{"role": "user", "content": "Is <video> a tag?"}], "USER: Is <video> a tag?"),
    "part": ([{"role": "user", "content": [text("Is <image> a tag?")]}], "USER: Is <image> a tag?"),
    "answer": (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "<video>"},
            {"role": "user", "content": "?"},
        ],
        "ASSISTANT: <video></s>",
    ),
    "system": ([{"role": "system", "content": "No <image>."}, {"role": "user", "content": "Hi"}], "No <image>. USER"),
    "tools": (
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "<html><image></html>"},
        ],
        'ASSISTANT: {"name": "f", "arguments": {"tag": "<video>"}}</s>',
    ),
    "tool reference": (
        [{"role": "user", "content": [{"type": "tool_reference", "name": "get_weather"}, text("?")]}],
        "USER: get_weather\n?",
    ),
    "beside an image": ([{"role": "user", "content": [PHOTO, text("What does <image> do?")]}], "What does <image> do?"),
}


@pytest.mark.parametrize(("messages", "shown"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_texts_may_speak_of_placeholders(server_url, messages, shown):
    status, reply = post(server_url, "/v1/chat/completions", messages=messages, max_tokens=2)
    assert status == 200, reply
    ids = tokens(server_url, messages)
    assert reply["usage"]["prompt_tokens"] == len(ids)
    status, reply = post(server_url, "/detokenize", tokens=ids)
    assert shown in reply["prompt"]


def test_a_leading_placeholder_is_that_of_the_part(server_url):
    with_it, without, other = (
        tokens(server_url, [{"role": "user", "content": [PHOTO, text(question)]}])
        for question in ("<image>\nWhat?", "What?", "<video>\nWhat?")
    )
    assert with_it == without
    assert len(other) > len(without)


def test_an_answer_with_a_placeholder_is_continued_and_echoed(server_url):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A <video>"}]
    options = {"add_generation_prompt": False, "continue_final_message": True, "echo": True, "max_tokens": 2}
    status, reply = post(server_url, "/v1/chat/completions", messages=messages, **options)
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"].startswith("A <video>")


def test_other_interfaces_take_texts_with_placeholders(server_url):
    with urllib.request.urlopen(f"{server_url}/v1/models") as response:
        model = json.load(response)["data"][0]["id"]
    messages = [{"role": "user", "content": [{"type": "text", "text": "Is <video> a tag?"}]}]
    status, reply = post(server_url, "/v1/messages", model=model, messages=messages, max_tokens=2)
    assert status == 200, reply
    status, reply = post(server_url, "/v1/responses", input="Is <video> a tag?", max_output_tokens=2)
    assert status == 200, reply


def test_truncation_that_cuts_media_off_is_refused(server_url):
    sentence = (
        "truncate_prompt_tokens is 9, which cuts images off the prompt; "
        "raise truncate_prompt_tokens or shorten the text."
    )
    status, reply = chat(server_url, PHOTO, text("What is this? " * 9), truncate_prompt_tokens=9)
    assert_refused(server_url, status, reply, sentence)


def test_a_prompt_that_is_too_long_says_what_takes_how_many_tokens(server_url):
    # What can never fit is refused before the text is looked at.
    assert_refused(server_url, *chat(server_url, *[PHOTO] * 300, text("What?")), "300 images take 4800 tokens; the")
    status, reply = chat(server_url, *[PHOTO] * 200, text("dog " * 2000))
    assert_refused(server_url, status, reply, "200 images take 3200 and text takes ")
    assert re.search(r"the limit is \d+ \(max_model_len\), answer included", reply["error"]["message"])


def test_offsets_of_tokens_are_refused(server_url):
    assert_refused(server_url, *chat(server_url, text("Hi"), return_token_offsets=True), "token offsets")


def test_no_client_names_a_path(server_url, media):
    picture = {"type": "image_pil", "image_pil": str(media[0] / "photo.jpg")}
    assert_refused(server_url, *chat(server_url, picture, text("What?")), "The image cannot be of type str")


def test_a_sequence_of_pictures_is_sampled_like_a_clip(server_url):
    pictures = []
    for frame in smooth_frames(24, 64, 64):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    spread = [pictures[index] for index in np.linspace(0, 23, 8, dtype=int)]
    logprobs = []
    for sequence in (pictures, spread, pictures[:8]):
        video = part("video", f"data:video/jpeg;base64,{','.join(sequence)}")
        _, reply = chat(server_url, video, text("What?"), logprobs=True)
        logprobs.append([step["logprob"] for step in reply["choices"][0]["logprobs"]["content"]])
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
    assert logprobs[0] != pytest.approx(logprobs[2], abs=1e-2)


@pytest.mark.parametrize("headers", [{}, {"X-Request-Id": "one-of-mine"}])
def test_a_refusal_names_the_part_and_is_logged_with_the_request(server, media, headers):
    good, bad = (part("video", (media[0] / name).as_uri()) for name in ("clip.mp4", "text"))
    messages = [
        {"role": "user", "content": [good, text("What?")]},
        {"role": "assistant", "content": "A clip."},
        {"role": "user", "content": [text("And this?"), bad]},
    ]
    status, reply = post(server.url, "/v1/chat/completions", headers, messages=messages)
    sentence = "Message 3, part 2: The video is plain text, not a video file; send the video file itself."
    assert_refused(server.url, status, reply, sentence)
    assert str(media[0]) not in reply["error"]["message"]
    logged = re.findall(rf"Request (\S+) refused: {re.escape(sentence)}", server.log.read_text())
    assert logged[-1] == headers.get("X-Request-Id", logged[-1])
    assert logged[-1] != "None"


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("404", 400, "its server answers with HTTP 404 (Not Found)."),
        ("503", 502, "its server answers with HTTP 503 (Service Unavailable); try again later."),
        ("close", 502, "its server did not send a complete HTTP response; check the address, or try again later."),
    ],
)
def test_what_cannot_be_fetched(server, path, status, reason):
    with faulty_server() as address:
        got, reply = chat(server.url, text("What?"), part("image", f"{address}{path}?secret"), text("And?"))
    assert got == status
    sentence = f"Message 1, part 2: The image cannot be fetched: {reason}"
    assert reply["error"]["message"] == sentence
    logged = server.log.read_text().rpartition(f"refused: {sentence}")[2]
    assert logged.startswith(f" ({address}{path}?...: ")
    assert "Traceback" not in logged


def test_another_number_of_frames_is_refused(server_url, media):
    video = part("video", (media[0] / "clip.mp4").as_uri())
    for options in ({"num_frames": 16}, {"fps": 2}):
        status, reply = chat(server_url, video, text("What?"), media_io_kwargs={"video": options})
        assert_refused(server_url, status, reply, "; this model always uses 8 frames of a video.")


def test_a_prompt_that_is_too_long_is_refused(server_url):
    assert_refused(server_url, *chat(server_url, text("dog " * 20_000)))


def test_streaming(server_url, media):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server_url}/v1", api_key="none")
    messages = [{"role": "user", "content": [part("video", (media[0] / "clip.mp4").as_uri()), text("What?")]}]
    with contextlib.closing(client):
        model = client.models.list().data[0].id
        options = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
        whole = client.chat.completions.create(**options).choices[0].message.content
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**options, stream=True)
        ]
    assert "".join(pieces) == whole
