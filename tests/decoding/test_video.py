"""The frames of a clip are, bit for bit, those that decoding all of it gives, in every codec; bombs are refused."""

import io
import struct
import wave

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from helpers.clips import CODECS, TURNS, X265, decode_all, encode_as, encode_clip, moving_frames, smooth_frames
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.sampling import sample_indices
from vllm_videollava.decoding.settings import Settings
from vllm_videollava.decoding.video import decode_frames

# Where a part of the clip is enough to give its frames.
INDEXED = {
    "H.264",
    "H.264, closed groups",
    "H.264, open groups",
    "H.264, open groups, TS",
    "HEVC, open groups",
    "HEVC, temporal layers",
    "VP9",
    "AV1",
    "MPEG-4",
}


def decode(data: bytes, num_frames: int = 8, threads: int = 1, **settings: int) -> np.ndarray:
    return decode_frames(io.BytesIO(data), num_frames, lambda frame: frame, Settings(**settings), threads)


@pytest.fixture(scope="module", params=CODECS)
def codec_and_clip(request):
    return request.param, encode_as(request.param, moving_frames(61, 96, 144))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("num_frames", [1, 3, 8, 16])
def test_frames_are_those_of_the_whole_clip(codec_and_clip, num_frames, threads):
    _, data = codec_and_clip
    every = decode_all(data)
    expected = every[np.linspace(0, len(every) - 1, num_frames, dtype=int)]
    assert np.array_equal(decode(data, num_frames, threads), expected)


def test_only_what_is_needed_is_decoded(codec_and_clip, monkeypatch):
    name, data = codec_and_clip
    whole = []
    monkeypatch.setattr("vllm_videollava.decoding.video._decode_whole", lambda *args: whole.append(args) or np.zeros(1))
    decode(data)
    assert bool(whole) != (name in INDEXED or name == "WebP")


@pytest.mark.parametrize("num_clip_frames", [1, 2, 5, 7, 8, 9])
@pytest.mark.parametrize("name", ["H.264", "VP9", "GIF", "WebP"])
def test_short_clips(name, num_clip_frames):
    every = decode_all(data := encode_as(name, moving_frames(num_clip_frames, 64, 96)))
    assert np.array_equal(decode(data), every[sample_indices(len(every), 8)])


@pytest.mark.parametrize(("height", "width"), [(90, 16), (90, 72), (64, 144), (90, 250), (51, 77), (33, 64), (64, 33)])
def test_narrow_and_odd_clips(height, width):
    every = decode_all(data := encode_clip(moving_frames(9, height, width)))
    assert np.array_equal(decode(data), every[sample_indices(9, 8)])


@pytest.mark.parametrize("name", ["H.264, closed groups", "H.264, open groups", "VP9", "MPEG-4"])
def test_frames_of_a_variable_rate_are_counted_not_timed(name):
    times = [index * index for index in range(40)]
    every = decode_all(data := encode_as(name, moving_frames(40, 64, 96), times=times))
    assert len(every) == 40
    assert np.array_equal(decode(data), every[sample_indices(40, 8)])


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_camera(turn):
    (a, b, c, d), upright = TURNS[turn]
    data = bytearray(encode_clip(moving_frames(20, 64, 96)))
    every = decode_all(bytes(data))
    # The matrix of 16.16 fixed point numbers stands 40 bytes after the header of a tkhd box of version 0.
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", *(n << 16 for n in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    assert np.array_equal(decode(bytes(data)), [upright(every[index]) for index in sample_indices(20, 8)])


@pytest.mark.parametrize("turn", ["90 degrees", "180 degrees", "270 degrees"])
def test_a_turned_camera_is_as_the_originals_decoder_has_it(turn):
    decord = pytest.importorskip("decord")
    (a, b, c, d), _ = TURNS[turn]
    data = bytearray(encode_clip(moving_frames(8, 64, 112)))
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", *(n << 16 for n in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    reader = decord.VideoReader(io.BytesIO(data))
    assert np.array_equal(decode(bytes(data)), reader.get_batch(range(8)).asnumpy())


@pytest.mark.parametrize("name", ["H.264, open groups, TS", "H.264, open groups", "HEVC, open groups", "VP9", "MPEG-4"])
@pytest.mark.parametrize(("first", "last"), [(0, 40), (5, 61), (13, 50)])
def test_a_part_cut_out_of_a_clip(name, first, last):
    """Cut without regard to key frames: players show what can be decoded."""
    container = CODECS[name][0]
    data = cut_packets(encode_as(name, moving_frames(61, 96, 144)), container, first, last)
    every = decode_all(data)
    assert np.array_equal(decode(data), every[sample_indices(len(every), 8)])


@pytest.mark.parametrize("name", ["H.264, closed groups", "H.264", "HEVC, open groups", "MPEG-4"])
@pytest.mark.parametrize("tenths", [5, 17])
def test_what_an_edit_list_leaves_out_is_not_counted(name, tenths, monkeypatch):
    """A clip that begins before its time 0: players decode what lies before, but do not show it."""
    monkeypatch.setattr("vllm_videollava.decoding.video._decode_whole", None)
    data = cut_packets(encode_as(name, moving_frames(61, 96, 144)), "mp4", 0, 61, tenths)
    every = decode_all(data)
    assert len(every) == 61 - tenths
    assert np.array_equal(decode(data), every[sample_indices(len(every), 8)])


@pytest.mark.parametrize("step", [1, 3, 7])
@pytest.mark.parametrize(
    "name", ["H.264", "H.264, open groups", "HEVC, open groups", "VP9", "AV1", "MPEG-4", "Motion JPEG"]
)
def test_packets_that_are_said_to_be_key_frames_and_are_not(name, step):
    for container in ("mp4", "matroska"):
        data = flag_keys(encode_as(name, moving_frames(61, 96, 144)), container, step)
        every = decode_all(data)
        for num_frames in (3, 8):
            assert np.array_equal(decode(data, num_frames), every[sample_indices(len(every), num_frames)])


@pytest.mark.parametrize("lost", [3, 14, 26, 40])
def test_a_picture_that_is_lost_where_others_are_needed_is_not_counted(lost):
    data = bytearray(encode_clip(moving_frames(61, 96, 144), "libx265", options={"x265-params": f"{X265}:open-gop=0"}))
    with av.open(io.BytesIO(data)) as clip:
        starts = [packet.pos + 4 for packet in clip.demux(video=0) if packet.size]
    # The next picture that no other refers to becomes one of a type that decoders pass over.
    place = next(start for start in starts[lost:] if data[start] == 0)
    data[place] = 41 << 1
    every = decode_all(bytes(data))
    assert len(every) == 60
    for num_frames in (8, 16):
        assert np.array_equal(decode(bytes(data), num_frames), every[sample_indices(60, num_frames)])


def flag_keys(data: bytes, container: str, step: int) -> bytes:
    """Say of every so many packets, and of no others, that they are key frames; in MP4, of all by leaving it out."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
        for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.is_keyframe = stream, index % step == 0
            output.mux(packet)
    return buffer.getvalue()


def cut_packets(data: bytes, container: str, first: int, last: int, tenths_earlier: int = 0) -> bytes:
    buffer = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=container, options=options) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        earlier = int(tenths_earlier / 10 / source.streams.video[0].time_base)
        for packet in [packet for packet in source.demux(video=0) if packet.size][first:last]:
            packet.stream = stream
            if earlier:
                packet.pts, packet.dts = packet.pts - earlier, packet.dts - earlier
            output.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("name", ["H.264, open groups, TS", "H.264, open groups", "VP9", "MPEG-4, AVI", "GIF"])
def test_a_clip_that_breaks_off(name, share):
    data = encode_as(name, moving_frames(61, 96, 144))
    every = decode_all(data := data[: int(len(data) * share)])
    assert np.array_equal(decode(data), every[sample_indices(len(every), 8)])


@pytest.mark.parametrize("name", ["H.264", "GIF", "WebP"])
def test_limits_are_named_with_what_was_met(name):
    data = encode_as(name, moving_frames(60, 64, 96))
    for settings, sentence in [
        (
            {"max_frame_pixels": 6000},
            "The video has frames of 96x64 = 6144 pixels; the limit is 6000 (VIDEO_LLAVA_MAX_FRAME_PIXELS).",
        ),
        ({"max_frames": 59}, "The video has at least 60 frames; the limit is 59 (VIDEO_LLAVA_MAX_FRAMES)."),
        (
            {"max_video_seconds": 3},
            r"The video lasts longer than [3-9] s; the limit is 3 (VIDEO_LLAVA_MAX_VIDEO_SECONDS).",
        ),
    ]:
        with pytest.raises(MediaError, match="^{}$".format(sentence.replace("(", r"\(").replace(")", r"\)"))):
            decode(data, **settings)


@pytest.mark.parametrize("name", ["GIF", "WebP"])
def test_a_narrow_clip(name):
    with pytest.raises(
        MediaError, match=r"^The video of 650x10 pixels is too narrow; the longer side may be at most 64 times"
    ):
        decode(encode_as(name, moving_frames(3, 10, 650)))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_cover_is_not_a_video(container):
    with pytest.raises(MediaError, match=r"^The video file has no video in it, only audio\.$"):
        decode(sound_with_cover(container))


def test_a_cover_beside_a_video_is_passed_over():
    clip = encode_clip(moving_frames(20, 64, 96))
    every = decode_all(clip)
    for first in (True, False):
        assert np.array_equal(decode(with_cover(clip, first)), every[sample_indices(20, 8)])


def sound_with_cover(container: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        audio = output.add_stream("aac", rate=8000, layout="mono")
        if container == "matroska":
            output.add_attachment("cover.png", "image/png", picture())
        else:
            mux_cover(output, add_cover(output))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate = 8000
        output.mux(audio.encode(silence))
        output.mux(audio.encode())
    return buffer.getvalue()


def with_cover(clip: bytes, first: bool) -> bytes:
    buffer = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(buffer, "w", format="mp4") as output:
        cover = add_cover(output) if first else None
        video = output.add_stream_from_template(source.streams.video[0])
        mux_cover(output, cover or add_cover(output))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
    return buffer.getvalue()


def add_cover(output):
    cover = output.add_stream("png")
    cover.width, cover.height, cover.pix_fmt = 640, 640, "rgb24"
    cover.disposition = Disposition.attached_pic
    return cover


def mux_cover(output, cover) -> None:
    output.mux(cover.encode(av.VideoFrame.from_ndarray(moving_frames(1, 640, 640)[0], format="rgb24")))


def test_a_webp_file_that_breaks_off_is_named():
    data = encode_as("WebP", moving_frames(3, 64, 96))
    for end in (12, 20, 40):
        with pytest.raises(MediaError, match=r"^The video is a damaged WebP file\.$"):
            decode(data[:end])


def playlist(path) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{path}\n#EXT-X-ENDLIST\n".encode()


REFUSED = {
    "empty": lambda path: b"",
    "text": lambda path: b"hello",
    "half a clip": lambda path: encode_clip(smooth_frames(20, 64, 96))[:2000],
    "sound only": lambda path: sound(),
    "playlist": playlist,
    "list of files": lambda path: f"ffconcat version 1.0\nfile {path}\n".encode(),
    "picture": lambda path: picture(),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_is_no_clip(make, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(smooth_frames(20, 64, 96)))
    with pytest.raises(MediaError, match=r"^The video ") as error:
        decode(make(path))
    assert str(tmp_path) not in str(error.value)


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setparams((1, 2, 8000, 0, "NONE", ""))
        output.writeframes(bytes(16000))
    return buffer.getvalue()


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()
