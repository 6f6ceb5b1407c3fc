"""Images and videos for attacks: good, damaged, empty, of another kind, and what only looks like a medium."""

import io
import random
from functools import cache

from PIL import Image

from helpers.clips import encode_clip, moving_frames
from helpers.damage import damage, good_images, good_videos
from helpers.http_client import data_url

UNREACHABLE = "http://127.0.0.1:9/a"


@cache
def image_url() -> str:
    buffer = io.BytesIO()
    Image.fromarray(moving_frames(1, 40, 60, seed=3)[0]).save(buffer, "PNG")
    return data_url(buffer.getvalue(), "image/png")


@cache
def video_url() -> str:
    return data_url(encode_clip(moving_frames(9, 48, 64, seed=3)), "video/mp4")


@cache
def data_urls() -> list[str]:
    """Return good and bad media, the same ones each time."""
    rng = random.Random(11)
    images, videos = good_images(), good_videos()
    good = [image_url(), video_url()]
    good += [data_url(data, "image/any") for data in images] + [data_url(data, "video/any") for data in videos]
    damaged = [data_url(damage(data, rng), "image/any") for data in images]
    damaged += [data_url(damage(data, rng), "video/any") for data in videos]
    junk = [data_url(data, "video/mp4") for data in (b"", b"\0" * 100, b"<html>", b"%PDF-1.7", b"#EXTM3U\n")]
    sequence = image_url().partition(",")[2]
    return [
        *good,
        *damaged,
        *junk,
        f"data:video/jpeg;base64,{sequence},{sequence}",
        f"data:video/jpeg;base64,{',' * 1000}",
        *("data:image/png;base64,!!!!", "data:,", "data:image/png,a%20b", "data:", "DATA:;BASE64,AAAA"),
        *("", " ", "x", "/etc/passwd", "file:///etc/passwd", "file:///", "file:///dev/zero", "ftp://a/b"),
        *(UNREACHABLE, "http://", "https://[", "http://a..b/", "\ud800", "data:image/png;base64,\ud800", "\0"),
        "data:image/png;base64," + "A" * 100_000,
    ]
