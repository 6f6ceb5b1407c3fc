"""A running OpenAI-compatible server: media in every way, bad input gets a sentence and HTTP 400, the server lives."""

import base64
import contextlib
import functools
import http.server
import io
import re
import threading

import numpy as np
import pytest
from clips import encode_clip, smooth_frames
from http_client import answer, assert_refused, chat, data_url, image_part, part, post, text, video_part
from PIL import Image


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
    assert_refused(server_url, status, reply, "image_aspect_ratio is 'fill'; 'pad' and null are supported.")


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
    "no media": ([text("What is <image>?")], r"1 <image> placeholder(s) but 0 image(s)"),
    "video too": ([text("<video><image>")], r"1 <image> placeholder(s) but 0 image(s)"),
    "one too many": (
        [image_part(Image.new("RGB", (8, 8))), text("<image>")],
        r"2 <image> placeholder(s) but 1 image(s)",
    ),
}


@pytest.mark.parametrize(("parts", "message"), PLACEHOLDERS.values(), ids=PLACEHOLDERS)
def test_more_placeholders_than_media_are_refused(server_url, parts, message):
    assert_refused(server_url, *chat(server_url, *parts), message)
    if len(parts) == 1:
        status, reply = post(server_url, "/v1/completions", prompt=parts[0]["text"], max_tokens=1)
        assert_refused(server_url, status, reply, message)


def test_offsets_of_tokens_are_refused(server_url):
    assert_refused(server_url, *chat(server_url, text("Hi"), return_token_offsets=True), "offsets of tokens")


def test_no_client_names_a_path(server_url, media):
    picture = {"type": "image_pil", "image_pil": str(media[0] / "photo.jpg")}
    assert_refused(server_url, *chat(server_url, picture, text("What?")), "An image was given as str")


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


def test_another_number_of_frames_is_refused(server_url, media):
    video = part("video", (media[0] / "clip.mp4").as_uri())
    for options in ({"num_frames": 16}, {"fps": 2}):
        status, reply = chat(server_url, video, text("What?"), media_io_kwargs={"video": options})
        assert_refused(server_url, status, reply, "but this model takes 8")


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
