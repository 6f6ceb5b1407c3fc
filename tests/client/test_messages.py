"""Messages are those that the OpenAI API documents."""

import base64
from pathlib import Path

from vllm_videollava.client import messages


def test_a_question_has_its_media_first():
    parts = [messages.media_part("image", "https://host/a.png"), messages.media_part("video", "file:///b.mp4")]
    assert messages.question("What?", parts) == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
                {"type": "video_url", "video_url": {"url": "file:///b.mp4"}},
                {"type": "text", "text": "What?"},
            ],
        }
    ]


def test_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert messages.file_url(Path("a b.mp4")) == f"file://{tmp_path}/a%20b.mp4"
    head, data = messages.data_url(b"\xff\xfe+", "video/mp4").split(",")
    assert head == "data:video/mp4;base64"
    assert base64.b64decode(data) == b"\xff\xfe+"
