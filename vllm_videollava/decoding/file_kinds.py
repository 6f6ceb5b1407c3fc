"""Recognises the kind of a file by its first bytes, so that an error can name it."""

import re
from typing import NamedTuple

HEAD_BYTES = 4096
"""The number of a file's first bytes that `recognize` needs."""


class FileKind(NamedTuple):
    """A kind of file.

    Attributes:
        name: with its article, for example "a web page (HTML)".
        instead: the advice to the client, for example "send it as an image".
        media: "image", "video", both or neither: the media that such a file may be.
    """

    name: str
    instead: str
    media: tuple[str, ...] = ()


def recognize(head: bytes) -> FileKind | None:
    """Return the kind of a file, given its first `HEAD_BYTES` bytes, or None if the kind is not known."""
    for kind, signature in _SIGNATURES:
        if signature.match(head):
            return kind
    text = _decode_text(head)
    if not text:
        return None
    return next((kind for kind, pattern in _TEXTS if pattern.match(text)), FileKind("plain text", _THE_FILE))


def describe(head: bytes) -> str | None:
    """Return the name of a file's kind, with its article, given its first bytes, or None if the kind is not known."""
    kind = recognize(head)
    return kind and kind.name


def find_medium(head: bytes) -> str:
    """Return whether a file is taken for an "image" or a "video", given its first bytes; a still WebP is an image."""
    kind = recognize(head)
    # A WebP with several frames says so in its first chunk.
    is_animated = head[12:16] == b"VP8X" and bool(head[20] & 2)
    is_still = kind is not None and (kind.media == ("image",) or (kind.name == "a WebP" and not is_animated))
    return "image" if is_still else "video"


def explain(medium: str, head: bytes) -> str | None:
    """Explain in one sentence why a file is not an image or not a video, and what to send.

    Args:
        medium: "image" or "video", whichever the file was sent as.
        head: the file's first `HEAD_BYTES` bytes.

    Returns:
        The sentence, or None if the file may be such a medium or its kind is not known.
    """
    kind = recognize(head)
    if kind is None or medium in kind.media:
        return None
    article = "an" if medium == "image" else "a"
    return f"The {medium} is {kind.name}, not {article} {medium} file; {kind.instead.format(medium=medium)}."


_THE_FILE = "send the {medium} file itself"


def _group(instead: str, names: dict[str, bytes], *media: str) -> list[tuple[FileKind, re.Pattern[bytes]]]:
    return [(FileKind(name, instead, media), re.compile(start, re.DOTALL)) for name, start in names.items()]


_SIGNATURES = [
    *_group(
        "this model does not take audio",
        {
            "audio (WAV)": rb"(RIFF|RF64)....WAVE",
            "audio (MP3)": rb"ID3[\x02-\x04]|(\xff[\xe2-\xe7\xf2-\xf7\xfa\xfb]).{20,}?\1",
            "audio (AAC)": rb"(\xff[\xf0\xf1\xf8\xf9]).{5,}?\1",
            "audio (M4A)": rb"....ftypM4[ABP]",
            "audio (FLAC)": rb"fLaC[\0\x80]",
            "audio (Ogg)": rb"OggS.{24}(\x01vorbis|OpusHead|\x7fFLAC|Speex )",
            "audio (AIFF)": rb"FORM....AIF[FC]",
            "audio (AMR)": rb"#!AMR",
            "audio (MIDI)": rb"MThd\0",
            "audio (AC-3)": rb"\x0b\x77",
            "audio (AU)": rb"\.snd",
            "audio (CAF)": rb"caff\0\x01",
            "audio (WavPack)": rb"wvpk",
            "audio (Monkey's Audio)": rb"MAC .[\x0e-\x10]",
        },
    ),
    *_group(
        "send it as an image",
        {
            # A PNG with acTL is animated, which counts as a video.
            "a picture (PNG)": rb"\x89PNG\r\n\x1a\n(?!.{25}.*acTL)",
            "a picture (JPEG)": rb"\xff\xd8\xff",
            "a picture (JPEG 2000)": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
            "a picture (JPEG XL)": rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a",
            "a picture (HEIC)": rb"....ftyp(hei[cmsx]|hev[cmsx])",
            "a picture (AVIF)": rb"....ftypavif",
            "a picture (HEIF)": rb"....ftypmif1",
            "a picture (BMP)": rb"BM....\0\0\0\0",
            "a picture (TIFF)": rb"II[*+]\0|MM\0[*+]|FUJIFILMCCD-RAW",
            "a picture (Photoshop)": rb"8BPS",
            "a picture (ICO)": rb"\0\0\x01\0[^\0]\0",
            "a picture (OpenEXR)": rb"\x76\x2f\x31\x01",
            "a picture (Netpbm)": rb"P[1-7]\s+(\d|#|WIDTH)",
            "a picture (QOI)": rb"qoif",
            "a picture (DDS)": rb"DDS \x7c\0\0\0",
            "a picture (Canon raw)": rb"....ftypcrx ",
        },
        "image",
    ),
    *_group(_THE_FILE, {"a GIF": rb"GIF8[79]a", "a WebP": rb"RIFF....WEBP"}, "image", "video"),
    *_group(
        "send it as a video",
        {
            "a video (MP4)": rb"....ftyp|[\0-\x1f]...(moov|mdat|wide|free|skip)",
            "a video (Matroska or WebM)": rb"\x1a\x45\xdf\xa3",
            "a video (AVI)": rb"RIFF....AVI ",
            "a video (Flash)": rb"FLV\x01",
            "a video (Windows Media)": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
            "a video (MPEG)": rb"\0\0\x01[\xba\xb3]",
            "a video (MPEG-TS)": rb"\x47.{187}\x47.{187}\x47",
            "a video (Ogg)": rb"OggS",
            "a video (RealMedia)": rb"\.RMF",
            "a video (animated PNG)": rb"\x89PNG\r\n\x1a\n",
        },
        "video",
    ),
    *_group(
        "send its pages as images",
        {
            "a PDF document": rb"\s*%PDF-",
            "an Office document": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
            rb"|PK\x03\x04.*(\[Content_Types\]\.xml|word/|ppt/|xl/)"
            rb"|PK\x03\x04.{26}mimetypeapplication/vnd\.oasis",
            "a PostScript document": rb"%!PS|\xc5\xd0\xd3\xc6",
            "a text document (RTF)": rb"\{\\rtf",
        },
    ),
    *_group(
        "unpack it and send the {medium} file itself",
        {
            "an archive (ZIP)": rb"PK(\x03\x04|\x05\x06|\x07\x08)",
            "an archive (gzip)": rb"\x1f\x8b",
            "an archive (7z)": rb"7z\xbc\xaf\x27\x1c",
            "an archive (tar)": rb".{257}ustar",
            "an archive (bzip2)": rb"BZh[1-9]",
            "an archive (xz)": rb"\xfd7zXZ\0",
            "an archive (Zstandard)": rb"\x28\xb5\x2f\xfd",
            "an archive (RAR)": rb"Rar!\x1a\x07",
            "an archive (cabinet)": rb"MSCF\0",
        },
    ),
    *_group(
        _THE_FILE,
        {
            "an executable": rb"\x7fELF|MZ.{60}\0\0|[\xce\xcf]\xfa\xed\xfe|\xfe\xed\xfa[\xce\xcf]|\xca\xfe\xba\xbe"
            rb"|\0asm|dex\n",
            "a NumPy array": rb"\x93NUMPY",
            "a database (SQLite)": rb"SQLite format 3\0",
            "data in HDF5": rb"\x89HDF\r\n\x1a\n",
            "data in Parquet": rb"PAR1\x15",
            "a torrent": rb"d\d+:(announce|created by|creation date)",
        },
    ),
]

_TEXTS = [
    (FileKind(name, instead), re.compile(start, re.IGNORECASE | re.DOTALL))
    for name, instead, start in (
        (
            "a Git LFS pointer",
            "download the file that it stands for, for example with `git lfs pull`",
            r"version https://(git-lfs|hawser)",
        ),
        (
            "a git-annex pointer",
            "download the file that it stands for, for example with `git annex get`",
            r"\S*/annex/objects/",
        ),
        *(
            (f"a playlist ({name})", "send one file that holds all of it", start)
            for name, start in (
                ("M3U8", r"#EXTM3U"),
                ("ffconcat", r"ffconcat\s"),
                ("PLS", r"\[playlist\]"),
                ("DASH", r"(<\?xml.*)?<MPD\b"),
                ("Smooth Streaming", r"(<\?xml.*)?<SmoothStreamingMedia\b"),
                ("XSPF", r"(<\?xml.*)?<playlist\b"),
                ("ASX", r"<asx\b"),
                ("SMIL", r"(<\?xml.*)?<smil\b"),
                ("SDP", r"v=0\r?\no="),
            )
        ),
        (
            "a web page (HTML)",
            "give the address of the file itself",
            r"<(!doctype html|html|head|body|title|meta|script|style|div|p|h1|table)\b"
            r"|<(\?xml|!--).*<(!doctype html|html)\b",
        ),
        ("a drawing (SVG)", "convert it to PNG and send it as an image", r"<((\?xml|!--|!doctype).*<)?svg\b"),
        ("an XML document", _THE_FILE, r"<\?xml|<[a-z][\w:.-]*[\s>/]"),
        ("JSON", _THE_FILE, r'\{\s*("|\}\s*$)|\[\s*([\[{"\d-]|\]\s*$)'),
        ("subtitles", _THE_FILE, r"WEBVTT|1\s*\n\d+:\d\d:\d\d[,.]\d+ -->"),
        ("a script", _THE_FILE, r"#!"),
        ("a link", "give the address of the file itself", r"\[InternetShortcut\]|[a-z][a-z0-9+]{1,9}://\S+\s*$"),
        ("a data URL", "send what it encodes", r"data:[\w/+.-]*[;,]"),
        ("base64", "send the {medium} file itself", r"[A-Za-z0-9+/_\-\r\n]{100,}=*\s*$"),
    )
]


def _decode_text(head: bytes) -> str | None:
    """Decode a text in a usual encoding and strip the spaces before it; return None if it is not such a text."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        # The head may end in the middle of a character.
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode(encoding)
    if re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", text):
        return None
    return text.lstrip()
