"""decord, chosen instead of PyAV: the frames that decord gives by itself, upright, within the same limits."""

import io
import struct

import numpy as np
import pytest

from helpers.clips import CODECS, TURNS, decode_all, encode_as, encode_clip, moving_frames
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.sampling import sample_indices
from vllm_videollava.decoding.settings import Settings
from vllm_videollava.decoding.video import decode_frames

decord = pytest.importorskip("decord")

# Their groups of pictures are closed, and their containers say where each begins: decord then finds what it looks for.
# In others it goes to the neighbourhood of a frame and takes another one.
EQUAL = {"H.264", "H.264, closed groups", "VP9", "VP8", "Motion JPEG", "Flash", "GIF", "WebP"}
UNREADABLE = {"H.264, no container"}
# decord itself gives other frames of them from time to time: PyAV decodes them.
UNRELIABLE = {"AV1", "HEVC, open groups", "HEVC, temporal layers"}
REFUSAL = r"^The video cannot be decoded with decord \(VIDEO_LLAVA_DECODER\); try another format or size, for example "


def decode(data: bytes, num_frames: int = 8, decoder: str = "decord", threads: int = 1, **settings: int) -> np.ndarray:
    return decode_frames(
        io.BytesIO(data), num_frames, lambda frame: frame, Settings(decoder=decoder, **settings), threads
    )


@pytest.mark.parametrize("num_frames", [3, 8])
@pytest.mark.parametrize("name", sorted(set(CODECS) - UNREADABLE))
def test_frames_beside_those_of_pyav(name, num_frames):
    """Each is a frame of the clip, bit for bit; where groups of pictures are closed, the same as with PyAV."""
    data = encode_as(name, moving_frames(61, 96, 144))
    frames, every = decode(data, num_frames), decode_all(data)
    if name in EQUAL:
        assert np.array_equal(frames, decode(data, num_frames, "pyav"))
    elif name != "H.264, intra refresh":
        known = {frame.tobytes() for frame in every}
        assert all(frame.tobytes() in known for frame in frames)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", sorted(set(CODECS) - UNREADABLE - UNRELIABLE - {"WebP", "H.264, intra refresh"}))
def test_frames_are_those_that_decord_gives(name, threads):
    data = encode_as(name, moving_frames(40, 64, 112))
    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    expected = reader.get_batch(np.linspace(0, len(reader) - 1, 8, dtype=int)).asnumpy()
    assert np.array_equal(decode(data, threads=threads), expected)


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("name", sorted(UNRELIABLE))
def test_frames_of_which_decord_would_lose_some(name, threads):
    """With decord, one in six HEVC clips was wrong with one thread, and nine in ten AV1 clips failed with eight."""
    data = encode_as(name, moving_frames(40, 64, 112))
    every = decode_all(data)
    for _ in range(40):
        assert np.array_equal(decode(data, threads=threads), every[sample_indices(len(every), 8)])


@pytest.mark.parametrize("turn", TURNS)
def test_turned_and_mirrored_clips_are_upright(turn):
    (a, b, c, d), upright = TURNS[turn]
    data = bytearray(encode_clip(moving_frames(20, 64, 112)))
    every = decode_all(bytes(data))
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", *(n << 16 for n in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    assert np.array_equal(decode(bytes(data)), [upright(every[index]) for index in sample_indices(20, 8)])


@pytest.mark.parametrize(("height", "width"), [(90, 16), (90, 72)])
def test_what_decord_cannot_read_is_refused_by_its_name(height, width):
    with pytest.raises(MediaError, match=REFUSAL):
        decode(encode_clip(moving_frames(9, height, width)))


@pytest.mark.parametrize("name", sorted(UNREADABLE))
def test_formats_that_decord_cannot_read(name):
    with pytest.raises(MediaError, match=REFUSAL):
        decode(encode_as(name, moving_frames(20, 64, 96)))


@pytest.mark.parametrize("share", [0.001, 0.01])
def test_a_file_that_breaks_off(share):
    data = encode_as("H.264, closed groups", moving_frames(20, 64, 96))
    with pytest.raises(MediaError, match=r"^The video is damaged, or in a format that is not supported\.$"):
        decode(data[: 8 + int(len(data) * share)])


@pytest.mark.parametrize("name", ["H.264", "GIF", "WebP"])
@pytest.mark.parametrize("limit", [{"max_frame_pixels": 6000}, {"max_frames": 59}, {"max_video_seconds": 3}])
def test_limits_are_those_of_pyav(name, limit):
    data = encode_as(name, moving_frames(60, 64, 96))
    sentences = []
    for decoder in ("pyav", "decord"):
        with pytest.raises(MediaError) as error:
            decode(data, decoder=decoder, **limit)
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
    ((field, most),) = limit.items()
    assert sentences[0].endswith(f"; the limit is {most} (VIDEO_LLAVA_{field.upper()}).")


def test_a_narrow_clip():
    with pytest.raises(MediaError, match=r"^The video of 650x10 pixels is too narrow"):
        decode(encode_as("GIF", moving_frames(3, 10, 650)))


def test_pyav_decodes_unless_decord_is_chosen(monkeypatch):
    import vllm_videollava.decoding.decord_video as module

    monkeypatch.setattr(module, "read_frames", None)
    data = encode_clip(moving_frames(20, 64, 96))
    assert len(decode(data, decoder="pyav")) == 8
    with pytest.raises(TypeError):
        decode(data)
