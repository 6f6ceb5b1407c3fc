"""What is sent in place of a video is named, with what to do, and no path of the server; so it is beside an image."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import time
import wave
import zipfile
from pathlib import Path

import av
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from helpers.clips import CODECS, encode_as, encode_clip, moving_frames
from helpers.damage import good_images
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.file_kinds import HEAD_BYTES, describe, explain
from vllm_videollava.decoding.settings import Settings
from vllm_videollava.decoding.video import decode_frames


def picture(name: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(moving_frames(1, 64, 96)[0]).save(buffer, name, **options)
    return buffer.getvalue()


def heic() -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(moving_frames(1, 64, 96)[0])).save(buffer)
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setparams((1, 2, 8000, 0, "NONE", ""))
        output.writeframes(bytes(16000))
    return buffer.getvalue()


def sound(container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48000, layout="stereo")
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 9600), np.float32), "fltp", "stereo")
        silence.rate = 48000
        for frame in av.AudioResampler(stream.format, "stereo", 48000, stream.frame_size or None).resample(silence):
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def zip_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("clip.mp4"), io.BytesIO())
    return buffer.getvalue()


CLIP = encode_clip(moving_frames(20, 64, 96))
WEB_PAGE = "a web page (HTML), not a video file; give the address of the file itself."
PLAYLIST = ", not a video file; send one file that holds all of it."
AUDIO = ", not a video file; this model does not take audio."
PICTURE = ", not a video file; send it as an image."
ARCHIVE = ", not a video file; unpack it and send the video file itself."
PAGES = ", not a video file; send its pages as images."
OTHER = ", not a video file; send the video file itself."
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
KINDS = {
    "page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", WEB_PAGE),
    "page with a comment": (b"\xef\xbb\xbf\n <!-- v2 -->\n<HTML lang=en><video src=a.mp4>", WEB_PAGE),
    "page in UTF-16": ("<html><body>404</body></html>".encode("utf-16"), WEB_PAGE),
    "XHTML": (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD">\n<html></html>', WEB_PAGE),
    "m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///{path}\n", f"a playlist (M3U8){PLAYLIST}"),
    "ffconcat": (b"ffconcat version 1.0\nfile {path}\n", f"a playlist (ffconcat){PLAYLIST}"),
    "pls": (b"[playlist]\nFile1={path}\n", f"a playlist (PLS){PLAYLIST}"),
    "mpd": (b'<?xml version="1.0"?>\n<MPD type="static"></MPD>', f"a playlist (DASH){PLAYLIST}"),
    "asx": (b"<ASX version='3.0'><entry/></ASX>", f"a playlist (ASX){PLAYLIST}"),
    "WAV": (wav(), f"audio (WAV){AUDIO}"),
    "MP3": (sound("mp3", "libmp3lame"), f"audio (MP3){AUDIO}"),
    "AAC": (sound("adts", "aac"), f"audio (AAC){AUDIO}"),
    "M4A": (sound("ipod", "aac"), f"audio (M4A){AUDIO}"),
    "FLAC": (sound("flac", "flac"), f"audio (FLAC){AUDIO}"),
    "Opus": (sound("ogg", "libopus"), f"audio (Ogg){AUDIO}"),
    "AIFF": (sound("aiff", "pcm_s16be"), f"audio (AIFF){AUDIO}"),
    "PNG": (picture("PNG"), f"a picture (PNG){PICTURE}"),
    "JPEG": (picture("JPEG"), f"a picture (JPEG){PICTURE}"),
    "BMP": (picture("BMP"), f"a picture (BMP){PICTURE}"),
    "TIFF": (picture("TIFF"), f"a picture (TIFF){PICTURE}"),
    "AVIF": (picture("AVIF"), f"a picture (AVIF){PICTURE}"),
    "HEIC": (heic(), f"a picture (HEIC){PICTURE}"),
    "Canon raw": (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom", f"a picture (Canon raw){PICTURE}"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", f"a PDF document{PAGES}"),
    "slides": (zip_of(**{"[Content_Types].xml": b"", "ppt__slide.xml": b""}), f"an Office document{PAGES}"),
    "ZIP": (zip_of(clip=CLIP), f"an archive (ZIP){ARCHIVE}"),
    "gzip": (gzip.compress(CLIP), f"an archive (gzip){ARCHIVE}"),
    "bzip2": (bz2.compress(CLIP), f"an archive (bzip2){ARCHIVE}"),
    "xz": (lzma.compress(CLIP), f"an archive (xz){ARCHIVE}"),
    "tar": (tar(), f"an archive (tar){ARCHIVE}"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24), f"an archive (7z){ARCHIVE}"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "a drawing (SVG), not a video file; convert it to PNG and "),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', f"an XML document{OTHER}"),
    "JSON": (b'{"error": {"message": "not found"}}', f"JSON{OTHER}"),
    "text": (b"hello", f"plain text{OTHER}"),
    "text of many bytes": ("Grüße aus Köln. ".encode() * 1000, f"plain text{OTHER}"),
    "subtitles": (b"1\n00:00:01,000 --> 00:00:02,000\nHello.\n", f"subtitles{OTHER}"),
    "script": (b"#!/bin/sh\necho\n", f"a script{OTHER}"),
    "executable": (Path(sys.executable).read_bytes()[:9999], f"an executable{OTHER}"),
    "LFS": (LFS, "a Git LFS pointer, not a video file; download the file that it stands for, for example with `git "),
    "link": (b"https://example.org/clip.mp4\n", "a link, not a video file; give the address of the file itself."),
    "base64": (b"AAAAIGZ0eXBpc29t" * 20, "base64, not a video file; send the video file itself."),
}


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_in_place_of_a_video_is_named(kind, decoder, tmp_path):
    if decoder == "decord":
        pytest.importorskip("decord")
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP)
    data, sentence = KINDS[kind]
    with pytest.raises(MediaError) as error:
        decode_frames(
            io.BytesIO(data.replace(b"{path}", bytes(path))), 8, lambda frame: frame, Settings(decoder=decoder)
        )
    assert str(error.value).startswith(f"The video is {sentence}")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_in_place_of_an_image_is_named_unless_it_is_one(kind):
    data, sentence = KINDS[kind]
    name = sentence.partition(",")[0]
    said = explain("image", data[:HEAD_BYTES])
    if name.startswith("a picture"):
        assert said is None
    else:
        assert said.startswith(f"The image is {name}, not an image file; ")
        assert "video" not in said
    assert describe(data[:HEAD_BYTES]) == name


@pytest.mark.parametrize("name", CODECS)
def test_videos_are_named_as_such(name):
    data = encode_as(name, moving_frames(3, 64, 96))
    assert explain("video", data[:HEAD_BYTES]) is None
    if name not in ("GIF", "WebP", "H.264, no container"):
        assert explain("image", data[:HEAD_BYTES]).endswith(", not an image file; send it as a video.")


def test_images_are_never_taken_for_something_else():
    assert [explain("image", data[:HEAD_BYTES]) for data in good_images()] == [None] * len(good_images())


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_named(seed):
    noise = np.random.default_rng(seed).bytes(5000)
    assert describe(noise[:HEAD_BYTES]) is None
    with pytest.raises(MediaError, match=r"^The video is damaged, or in a format"):
        decode_frames(io.BytesIO(noise), 8, lambda frame: frame, Settings())


@pytest.mark.parametrize(
    "piece",
    [b"<!---->", b"<!--", b"<?xml", b"<!doctype", b"<svg", b"PK\x03\x04", b"\xff\xfb", b"{ ", b"data:a", b" ", b"["],
)
@pytest.mark.parametrize("start", [b"", b"<?xml", b"<!--", b"<?xml<!--<!doctype"])
def test_no_file_takes_long_to_name(start, piece):
    began = time.process_time()
    describe((start + piece * HEAD_BYTES)[:HEAD_BYTES])
    assert time.process_time() - began < 0.1
