"""Decodes the frames of a video that the model sees, and few others.

They are exactly the frames that decoding the whole video would give. For speed,
only groups of pictures with a wanted frame are decoded, each from its key frame
on, and pictures that no other picture depends on are skipped. If the video has
too little information for that, or decoding shows that it is wrong, the whole
video is decoded.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import BinaryIO

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageSequence

from vllm_videollava.decoding import bitstream
from vllm_videollava.decoding.data_urls import decode_base64
from vllm_videollava.decoding.errors import MediaError
from vllm_videollava.decoding.file_kinds import HEAD_BYTES, explain, recognize
from vllm_videollava.decoding.image import decode_image
from vllm_videollava.decoding.limits import check_duration, check_frame_count, check_frame_size
from vllm_videollava.decoding.sampling import sample_indices
from vllm_videollava.decoding.settings import Settings

# These formats cannot open further files or addresses; others of FFmpeg's can.
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,gif,apng,h264,hevc,ivf,obu,mjpeg,"
    "yuv4mpegpipe,mxf,nut,dv,rm,3gp,wtv,vob"
)
# Brands of MP4 files that hold one picture, perhaps in tiles; FFmpeg would show only one of the tiles.
PICTURE_BRANDS = {"avif", "heic", "heim", "heis", "heix", "mif1"}
# In these formats, each packet is one picture with its time, and key frames can be trusted.
INDEXED_FORMATS = {"mov", "matroska", "mpegts", "flv"}
# For these codecs, FFmpeg can tell whether other pictures depend on a picture.
SKIPPABLE_CODECS = {"h264", "mpeg4"}
# For these codecs, FFmpeg may return several frames for one packet. decord then sometimes loses packets and returns
# wrong frames or none (dmlc/decord#246).
NOT_FOR_DECORD = {"av1", "hevc"}
# PyAV 18 refuses titles that are not UTF-8 unless told to replace them; 19 keeps them, and has no such option.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

Transform = Callable[[np.ndarray], np.ndarray]


class _NoVideoError(Exception):
    """The file can be read but contains no video; the message is one sentence."""


class _IndexError(Exception):
    """Decoding from a key frame did not give a frame that the video's packets promised."""


def decode_frames(
    file: BinaryIO, num_frames: int, transform: Transform, settings: Settings, threads: int = 1
) -> np.ndarray:
    """Decode `num_frames` frames, evenly spread over a video, and apply `transform` to each as it comes.

    Args:
        file: the video, open for reading.
        transform: from an upright frame, uint8 `[H, W, 3]`, RGB, to the result.
        threads: number of threads that the decoder may use.

    Returns:
        The stacked results of `transform`, one for each frame.

    Raises:
        MediaError: the file is not a video that can be decoded, or goes beyond `settings`.
    """
    try:
        return _decode(file, num_frames, transform, settings, threads)
    except MemoryError:
        raise
    except (_NoVideoError, av.FFmpegError, OSError) as error:
        raise MediaError(_explain(file) or _say(error)) from error


def decode_picture_sequence(
    file: BinaryIO, num_frames: int, transform: Transform, settings: Settings, max_pixels: int
) -> np.ndarray:
    """Decode `num_frames` pictures, evenly spread over a video that was sent as pictures.

    Args:
        file: base64 of each picture, with commas between them.
        transform: as for `decode_frames`.
        max_pixels: as for `decode_image`.

    Returns:
        The stacked results of `transform`, one for each picture.

    Raises:
        MediaError: a picture that is needed cannot be decoded, or the video goes beyond `settings` or `max_pixels`.
    """
    text = file.read()
    count = text.count(b",") + 1
    check_frame_count(count, settings)
    wanted = sample_indices(count, num_frames)
    pictures = dict(_find_pictures(text, set(wanted.tolist())))
    decoded: dict[bytes, np.ndarray] = {}
    for index, picture in pictures.items():
        if picture not in decoded:
            decoded[picture] = _decode_picture(index + 1, picture, transform, settings, max_pixels)
    return np.stack([decoded[pictures[index]] for index in wanted])


def _find_pictures(text: bytes, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield each wanted index of a comma-separated list and the item there; to save memory, the list is not split."""
    start = 0
    for index in range(max(wanted) + 1):
        end = text.find(b",", start)
        end = len(text) if end < 0 else end
        if index in wanted:
            yield index, text[start:end]
        start = end + 1


def _decode_picture(number: int, text: bytes, transform: Transform, settings: Settings, max_pixels: int) -> np.ndarray:
    def check_and_transform(rgb: np.ndarray) -> np.ndarray:
        check_frame_size(*rgb.shape[:2], settings)
        return transform(rgb)

    try:
        file = io.BytesIO(decode_base64("image", text.decode(errors="replace")))
        return decode_image(file, check_and_transform, max_pixels)
    except MediaError as error:
        raise MediaError(f"Picture {number} of the video: {error}") from error


def _explain(file: BinaryIO) -> str | None:
    file.seek(0)
    return explain("video", file.read(HEAD_BYTES))


def _say(error: Exception) -> str:
    if isinstance(error, _NoVideoError):
        return str(error)
    # FFmpeg's own messages, such as "Operation not permitted", seldom name the real fault.
    return "The video is damaged, or in a format that is not supported."


def _decode(file: BinaryIO, num_frames: int, transform: Transform, settings: Settings, threads: int) -> np.ndarray:
    if _is_webp(file):
        try:
            return _decode_webp(file, num_frames, transform, settings)
        except (OSError, EOFError, SyntaxError) as error:
            raise MediaError("The video is a damaged WebP file.") from error
    with _open(file, threads) as (container, stream):
        packets = _read_packets(container, stream, settings)
        check_frame_size(stream.codec_context.height, stream.codec_context.width, settings)
        with_decord = settings.decoder == "decord" and stream.codec_context.codec.canonical_name not in NOT_FOR_DECORD
        if with_decord:
            mirror = _mirror(stream.codec_context, packets)
        elif _can_index(container, stream, packets):
            try:
                return _decode_indexed(stream.codec_context, packets, num_frames, transform, settings)
            except _IndexError:
                pass
    if with_decord:
        return np.stack([transform(mirror(rgb)) for rgb in _read_with_decord(file, num_frames, threads)])
    return _decode_whole(file, threads, len(packets), num_frames, transform, settings)


def _read_with_decord(file: BinaryIO, num_frames: int, threads: int) -> np.ndarray:
    from vllm_videollava.decoding.decord_video import read_frames

    # PyAV found a video, or pictures that make one. But to decord it may be a playlist, whose files decord would open.
    file.seek(0)
    kind = recognize(file.read(HEAD_BYTES))
    if kind and not kind.media:
        raise MediaError(_explain(file))
    return read_frames(file, num_frames, threads)


def _mirror(context, packets: list[av.Packet]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that makes decord's frames upright: decord rotates them but never mirrors them."""
    for packet in [*packets, None]:
        with _passing_damage():
            for frame in context.decode(packet):
                matrix = _display_matrix(frame)
                if matrix is None or int(matrix[0]) * int(matrix[4]) >= int(matrix[1]) * int(matrix[3]):
                    return lambda rgb: rgb
                return lambda rgb: _turn(np.rot90(rgb, round(-frame.rotation / 90)), matrix)
    return lambda rgb: rgb


@contextmanager
def _open(file: BinaryIO, threads: int) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    file.seek(0)
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    with av.open(file, options=options, **_METADATA) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise _NoVideoError(
                f"The video file has no video in it{', only audio' if container.streams.audio else ''}."
            )
        if container.metadata.get("major_brand") in PICTURE_BRANDS:
            raise _NoVideoError("The video is a picture; send it as an image.")
        stream.codec_context.thread_type, stream.codec_context.thread_count = "FRAME", threads
        yield container, stream


def _read_packets(container, stream, settings: Settings) -> list[av.Packet]:
    """Read a video's packets up to the end, or up to where the file is cut off or damaged."""
    packets = []
    with _passing_damage():
        for packet in container.demux(stream):
            if packet.size:
                packets.append(packet)
                check_frame_count(len(packets), settings)
    times = [packet.pts for packet in packets if packet.pts is not None]
    if times:
        check_duration(float((max(times) - min(times)) * stream.time_base), settings)
    return packets


@contextmanager
def _passing_damage(otherwise: Exception | None = None) -> Iterator[None]:
    """Ignore FFmpeg's errors about damage, as players do, or raise `otherwise` instead."""
    try:
        yield
    except MemoryError:
        raise
    except av.FFmpegError as error:
        if otherwise:
            raise otherwise from error


def _can_index(container, stream, packets: list[av.Packet]) -> bool:
    context = stream.codec_context
    if context.name not in bitstream.CODECS or INDEXED_FORMATS.isdisjoint(container.format.name.split(",")):
        return False
    shown = [packet.pts for packet in packets if not packet.is_discard]
    if not shown or None in shown or len(set(shown)) < len(shown) or not packets[0].is_keyframe:
        return False
    decoded = [packet.dts for packet in packets if packet.dts is not None]
    if not all(before < after for before, after in pairwise(decoded)):
        return False
    return bitstream.can_start_at_key_frames(context.name, context.extradata or b"", packets)


def _decode_indexed(
    context, packets: list[av.Packet], num_frames: int, transform: Transform, settings: Settings
) -> np.ndarray:
    position = {packet.pts: index for index, packet in enumerate(packets) if not packet.is_discard}
    times = sorted(position)
    wanted = [times[index] for index in sample_indices(len(times), num_frames)]
    keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
    groups: dict[int, set[int]] = {}
    for time in wanted:
        # A picture that is stored after a key frame but shown before it may depend on pictures before that key frame.
        key = max((key for key in keys if key <= position[time] and packets[key].pts <= time), default=0)
        groups.setdefault(key, set()).add(time)
    results: dict[int, np.ndarray] = {}
    for key, times_in_group in groups.items():
        last = max(position[time] for time in times_in_group)
        for time, frame in _decode_group(context, packets[key : last + 1], times_in_group):
            results[time] = transform(_upright_rgb(frame, settings))
    return np.stack([results[time] for time in wanted])


def _decode_group(context, packets: list[av.Packet], wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode packets from a key frame on, and yield the frames whose times are wanted.

    Raises:
        _IndexError: decoding met damage that decoding the whole video may not meet.
    """
    context.flush_buffers()
    skips = context.name in SKIPPABLE_CODECS
    missing = wanted if skips else {packet.pts for packet in packets if not packet.is_discard}
    missing = {time for time in missing if time >= packets[0].pts or time in wanted}
    for packet in [*packets, None]:
        if packet is not None and skips:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        with _passing_damage(otherwise=_IndexError()):
            frames = context.decode(packet)
        for frame in frames:
            # The decoder conceals damage with other pictures, some of which were skipped here.
            if frame.is_corrupt:
                raise _IndexError
            missing.discard(frame.pts)
            if frame.pts in wanted:
                yield frame.pts, frame
    if missing:
        raise _IndexError


def _decode_whole(
    file: BinaryIO, threads: int, guess: int, num_frames: int, transform: Transform, settings: Settings
) -> np.ndarray:
    """Decode the whole video, and do so again if it turns out not to have the guessed number of frames."""
    wanted = sample_indices(guess, num_frames)
    results: dict[int, np.ndarray] = {}
    count = 0
    for frame in _every_frame(file, threads, settings):
        if count in wanted:
            results[count] = transform(_upright_rgb(frame, settings))
        count += 1
        check_frame_count(count, settings)
    if not count:
        raise _NoVideoError("The video has no frame that can be decoded.")
    if count != guess:
        return _decode_whole(file, threads, count, num_frames, transform, settings)
    return np.stack([results[index] for index in wanted])


def _every_frame(file: BinaryIO, threads: int, settings: Settings) -> Iterator[av.VideoFrame]:
    with _open(file, threads) as (container, stream):
        for packet in [*_read_packets(container, stream, settings), None]:
            frames = []
            with _passing_damage():
                frames = stream.codec_context.decode(packet)
            yield from frames


def _upright_rgb(frame: av.VideoFrame, settings: Settings) -> np.ndarray:
    check_frame_size(frame.height, frame.width, settings)
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    matrix = _display_matrix(frame)
    return rgb if matrix is None else _turn(rgb, matrix)


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32)


def _turn(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Mirror a frame and rotate it by a multiple of 90 degrees, as the container says.

    Args:
        matrix: int32 `[9]`. The first two values of its first row are the
            direction of a step to the right; those of its second row, of a
            step down.
    """
    a, b, c, d = (int(matrix[index]) for index in (0, 1, 3, 4))
    if abs(a) < abs(b):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _is_webp(file: BinaryIO) -> bool:
    file.seek(0)
    header = file.read(12)
    return header[:4] == b"RIFF" and header[8:] == b"WEBP"


def _decode_webp(file: BinaryIO, num_frames: int, transform: Transform, settings: Settings) -> np.ndarray:
    """Decode with Pillow, because FFmpeg cannot decode animated WebP; `image` has lifted Pillow's limit on pixels."""
    with Image.open(file, formats=("WEBP",)) as image:
        check_frame_size(image.height, image.width, settings)
        count = image.n_frames
        check_frame_count(count, settings)
        wanted = sample_indices(count, num_frames)
        results = {}
        duration = 0
        for index, frame in enumerate(ImageSequence.Iterator(image)):
            frame.load()
            duration += frame.info.get("duration", 0)
            check_duration(duration / 1000, settings)
            if index in wanted:
                results[index] = transform(np.asarray(frame.convert("RGB")))
    return np.stack([results[index] for index in wanted])
