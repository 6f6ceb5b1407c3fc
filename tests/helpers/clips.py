"""Clips and images for the tests, made from numbers, in every container and codec."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction

import av
import numpy as np
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
X265 = "log-level=none:keyint=12:bframes=3"
CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    # One group of pictures, and several; B-frames that others refer to.
    "H.264": ("mp4", "libx264", {"bf": "3"}),
    "H.264, closed groups": ("mp4", "libx264", {"bf": "3", "g": "12"}),
    "H.264, open groups": ("matroska", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"}),
    "H.264, open groups, TS": ("mpegts", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "H.264, intra refresh": ("mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    "H.264, AVI": ("avi", "libx264", {"bf": "2", "g": "12"}),
    "H.264, no container": ("h264", "libx264", {"bf": "2", "g": "12"}),
    "HEVC, open groups": ("mp4", "libx265", {"x265-params": f"{X265}:open-gop=1"}),
    "HEVC, temporal layers": ("matroska", "libx265", {"x265-params": f"{X265}:temporal-layers=1"}),
    "VP9": ("webm", "libvpx-vp9", {"g": "12", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}),
    "VP8": ("webm", "libvpx", {"g": "12", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}),
    "AV1": ("mp4", "libsvtav1", {"g": "12", "preset": "10"}),
    "MPEG-4": ("mp4", "mpeg4", {"bf": "2", "g": "12"}),
    "MPEG-4, AVI": ("avi", "mpeg4", {"bf": "2", "g": "12"}),
    "MPEG-2, TS": ("mpegts", "mpeg2video", {"bf": "2", "g": "12"}),
    "Motion JPEG": ("avi", "mjpeg", {}),
    "Flash": ("flv", "flv", {"g": "12"}),
    "WMV": ("asf", "wmv2", {"g": "12"}),
    "GIF": ("gif", "gif", {}),
    "WebP": ("webp", "libwebp_anim", {}),
}
"""Container, encoder and its options."""
PIXEL_FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p", "libwebp_anim": "yuv420p"}


def smooth_frames(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft random colours, in each frame others, uint8 `[N, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, 3, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(colours).resize((width, height), BICUBIC)) for colours in coarse])


def moving_frames(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A texture that moves, so that encoders refer from one frame to others, uint8 `[N, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    texture = np.asarray(
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((2 * width, 2 * height), BICUBIC)
    )
    return np.stack([np.roll(texture, (index, 2 * index), (0, 1))[:height, :width] for index in range(num_frames)])


def encode_clip(
    frames: np.ndarray,
    codec: str = "libx264",
    container: str = "mp4",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
) -> bytes:
    """Encode frames, uint8 `[N, H, W, 3]`, at 10 frames a second, or at `times` in tenths of a second."""
    buffer = io.BytesIO()
    with _keep_priority(), av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        odd = frames.shape[1] % 2 or frames.shape[2] % 2
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv444p" if odd else "yuv420p")
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 10), times[index] if times else index
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@contextmanager
def _keep_priority() -> Iterator[None]:
    """Stay a usual process; SVT-AV1 gives root's real-time priority, which servers that a test starts would inherit."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def encode_as(name: str, frames: np.ndarray, **kwargs) -> bytes:
    """Encode frames in one of the ways of `CODECS`."""
    container, codec, options = CODECS[name]
    return encode_clip(frames, codec, container, options, **kwargs)


def decode_all(data: bytes) -> np.ndarray:
    """Decode every frame from first to last, past any damage; the frames of WebP with Pillow."""
    if data[8:12] == b"WEBP":
        with Image.open(io.BytesIO(data)) as image:
            frames = []
            for index in range(image.n_frames):
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
            return np.stack(frames)
    frames = []
    with av.open(io.BytesIO(data)) as clip:
        # How FFmpeg fills gaps in damaged frames depends on its threads.
        clip.streams.video[0].thread_type = "NONE"
        for packet in clip.demux(video=0):
            with suppress(av.error.InvalidDataError):
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return np.stack(frames)


PARAMETER_SETS = {
    "libx264": lambda unit: unit[0] & 31 in (7, 8),
    "libx265": lambda unit: unit[0] >> 1 & 63 in (32, 33, 34),
    "mpeg4": lambda unit: unit[0] not in (0xB3, 0xB6),
}


def join_clips(
    parts: list[np.ndarray],
    options: list[dict[str, str]],
    container: str,
    every_key: bool = False,
    codec: str = "libx264",
) -> bytes:
    """Join clips, each encoded with its own options of one encoder, as recorders do that are set up anew in between.

    Args:
        parts: of each clip, uint8 `[N, H, W, 3]`.
        options: of each clip's encoder.
        container: "flv", where a new header precedes each part; "mp4, descriptions", where each part has a
            description of its own; or one where parameter sets stand in the first packet of each part.
        every_key: they stand in the packet of every key frame, as they always do in VP9 and AV1.
    """
    if container.startswith("mp4, "):
        return _remux(join_clips(parts, options, "flv"), "mp4")
    if container == "flv":
        return _join_flv(
            [encode_clip(frames, "libx264", "flv", own) for frames, own in zip(parts, options, strict=True)]
        )
    is_set = PARAMETER_SETS.get(codec)
    buffer = io.BytesIO()
    output, stream, start = None, None, 0
    for frames, own in zip(parts, options, strict=True):
        with av.open(io.BytesIO(encode_clip(frames, codec, "mpegts" if is_set else "mp4", own))) as source:
            if output is None:
                output = av.open(buffer, "w", format=container)
                stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
            for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
                data = bytes(packet)
                if index and is_set and not every_key:
                    units = data.split(b"\0\0\1")[1:]
                    data = b"".join(b"\0\0\1" + unit for unit in units if not is_set(unit))
                copy = av.Packet(data)
                copy.pts, copy.dts, copy.time_base = packet.pts + start, packet.dts + start, packet.time_base
                # Before what is said to be a key frame, the muxer of transport streams puts the first parameter sets.
                copy.is_keyframe = packet.is_keyframe and container != "mpegts"
                copy.stream = stream
                output.mux(copy)
        start += round(len(frames) / 10 / packet.time_base)
    output.close()
    return buffer.getvalue()


def _remux(data: bytes, container: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return buffer.getvalue()


def _join_flv(clips: list[bytes]) -> bytes:
    """Append the video tags of each clip, later by as much as the ones before it last."""
    joined, start = clips[0][:13], 0
    for clip in clips:
        at, last = 13, 0
        while at < len(clip):
            end = at + 15 + int.from_bytes(clip[at + 1 : at + 4], "big")
            if clip[at] == 9:
                last = int.from_bytes(clip[at + 4 : at + 7], "big")
                joined += clip[at : at + 4] + (start + last).to_bytes(3, "big") + clip[at + 7 : end]
            at = end
        start += last + 100
    return joined


TURNS = {
    # The first two rows of the matrix in a track's header, and what a player makes of a frame.
    "upright": ((1, 0, 0, 1), lambda frame: frame),
    "90 degrees": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "180 degrees": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "270 degrees": ((0, -1, 1, 0), np.rot90),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "90 degrees and mirrored": ((0, 1, 1, 0), lambda frame: np.fliplr(np.rot90(frame, -1))),
}
