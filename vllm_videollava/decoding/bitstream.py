"""Tells from a video's packets whether decoding can start at each of its key frames."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import pairwise
from struct import Struct
from typing import NamedTuple

import av

_LENGTH_AND_TYPE = Struct(">IB")
_START_CODE = re.compile(rb"\0\0\x01")
Bytes = bytes | memoryview


def _start_codes_before(first_bytes: Iterable[int]) -> re.Pattern[bytes]:
    return re.compile(b"\0\0\x01[" + b"".join(re.escape(bytes([first])) for first in sorted(first_bytes)) + b"]")


class _UnclearError(Exception):
    """The packets do not have the expected form."""


class _Content(NamedTuple):
    """The content of a packet.

    Attributes:
        setup: parameter sets and other headers, in their order, which set the decoder up for all that follows.
        starts: whether decoding can start here: the first picture needs no earlier picture, and neither do the
            pictures that are both decoded and shown after it.
    """

    setup: list[bytes]
    starts: bool


def can_start_at_key_frames(codec: str, extradata: bytes, packets: Sequence[av.Packet]) -> bool:
    """Tell whether decoding from any key frame gives the same pictures as decoding from the first packet.

    It does if every packet flagged as a key frame is one, and if no packet changes the decoder's setup.

    Args:
        codec: one of `CODECS`.
        extradata: the bytes that the container gives the decoder before the first packet.
    """
    try:
        return _keeps_setup(CODECS[codec](extradata), extradata, packets)
    except (_UnclearError, IndexError):
        return False


def _keeps_setup(reader: "_Reader", extradata: bytes, packets: Sequence[av.Packet]) -> bool:
    if any(packet.is_corrupt for packet in packets):
        return False
    if any(_changes_decoder(data, extradata) for packet in packets for data in packet.iter_sidedata()):
        return False
    first = reader.read(packets[0]).setup
    # If the container does not have them, each key frame must repeat the parameter sets of the first.
    is_in_container = set(first) <= set(reader.setup)
    known = reader.setup if is_in_container else first
    has_one_of_each = len({reader.kind(unit) for unit in known}) == len(known)
    for packet in reader.notable(packets):
        setup, starts = reader.read(packet)
        if packet.is_keyframe and not (starts and (is_in_container or setup == known)):
            return False
        if setup and setup != known and not (has_one_of_each and set(setup) <= set(known)):
            return False
    return True


def _changes_decoder(data: av.packet.PacketSideData, extradata: bytes) -> bool:
    kind = data.data_type
    return kind == "param_change" or (kind == "new_extradata" and bytes(data) != extradata)


class _Reader:
    """Reads the packets of one codec, given the decoder's setup."""

    setup: list[bytes]

    def __init__(self, extradata: bytes) -> None:
        self.setup = self.read(extradata).setup if extradata else []

    def read(self, packet: av.Packet | bytes) -> _Content:
        raise NotImplementedError

    def kind(self, unit: Sequence[int]) -> int:
        """Return the number that the codec's standard gives to this type of unit."""
        return unit[0]

    def notable(self, packets: Sequence[av.Packet]) -> Iterable[av.Packet]:
        """Quickly skip most of the packets that contain only a picture and are not key frames."""
        return packets


class _NalReader(_Reader):
    """Reads H.264 or HEVC, where a start code or a length comes before each unit."""

    setup_kinds: frozenset[int]
    picture_kinds: range
    breaking_kinds: frozenset[int] = frozenset()

    def __init__(self, extradata: bytes) -> None:
        self._length_bytes = 0
        self._pictures = self._first_bytes(set(self.picture_kinds) - self.breaking_kinds)
        self._notable = _start_codes_before(self._first_bytes(self.setup_kinds | self.breaking_kinds))
        units: Iterable[Bytes]
        if self.is_record(extradata):
            self._length_bytes, units = self.read_record(extradata)
        else:
            units = _split_at_start_codes(extradata)
        self.setup = [_strip(unit) for unit in units if self.kind(unit) in self.setup_kinds]

    def read(self, packet: av.Packet | bytes) -> _Content:
        setup, starts = [], None
        exact = False
        for unit in self._split(packet):
            kind = self.kind(unit)
            if kind in self.setup_kinds:
                setup.append(_strip(unit))
            elif kind in self.breaking_kinds:
                raise _UnclearError
            elif kind in self.picture_kinds:
                if starts is None:
                    starts = exact or self.starts(kind)
            elif self.is_exact_recovery_point(kind, unit):
                exact = True
        return _Content(setup, bool(starts))

    def notable(self, packets: Sequence[av.Packet]) -> Iterable[av.Packet]:
        if not self._length_bytes:
            return (packet for packet in packets if packet.is_keyframe or self._notable.search(packet))
        return self._notable_by_lengths(packets) if self._length_bytes == 4 else packets

    def _notable_by_lengths(self, packets: Sequence[av.Packet]) -> Iterator[av.Packet]:
        pictures, unpack = self._pictures, _LENGTH_AND_TYPE.unpack_from
        for packet in packets:
            at, size = 0, packet.size
            while at + 5 <= size:
                length, first = unpack(packet, at)
                if first not in pictures:
                    break
                at += 4 + length
            if at != size or packet.is_keyframe:
                yield packet

    def _first_bytes(self, kinds: Container[int]) -> set[int]:
        return {first for first in range(256) if self.kind((first,)) in kinds}

    def _split(self, packet: av.Packet | bytes) -> Iterator[Bytes]:
        if self._length_bytes:
            return _split_by_lengths(memoryview(packet), self._length_bytes)
        return _split_at_start_codes(memoryview(packet))

    def is_record(self, extradata: bytes) -> bool:
        raise NotImplementedError

    def read_record(self, extradata: bytes) -> tuple[int, list[Bytes]]:
        """Return the number of bytes that hold a unit's length, and the units."""
        raise NotImplementedError

    def starts(self, kind: int) -> bool:
        raise NotImplementedError

    def is_exact_recovery_point(self, kind: int, unit: Bytes) -> bool:
        return False


class _H264Reader(_NalReader):
    setup_kinds = frozenset({7, 8})
    picture_kinds = range(1, 6)

    def kind(self, unit: Sequence[int]) -> int:
        return unit[0] & 31

    def is_record(self, extradata: bytes) -> bool:
        return extradata[:1] == b"\x01"

    def read_record(self, extradata: bytes) -> tuple[int, list[Bytes]]:
        sets, end = _read_list(extradata, 6, extradata[5] & 31)
        more, _ = _read_list(extradata, end + 1, extradata[end])
        return (extradata[4] & 3) + 1, sets + more

    def starts(self, kind: int) -> bool:
        return kind == 5

    def is_exact_recovery_point(self, kind: int, unit: Bytes) -> bool:
        """Tell whether every picture shown from the next one on is exact: recovery_frame_cnt 0, exact_match 1."""
        if kind != 6:
            return False
        messages = bytes(unit[1:]).replace(b"\0\0\x03", b"\0\0")
        at = 0
        while at + 2 < len(messages):
            payload, at = _read_number(messages, at)
            size, at = _read_number(messages, at)
            if payload == 6:
                return messages[at] & 0xC0 == 0xC0
            at += size
        return False


class _HevcReader(_NalReader):
    setup_kinds = frozenset({32, 33, 34})
    picture_kinds = range(32)
    # After a broken link or the end of a sequence, decoders skip pictures, so there are fewer pictures than packets.
    breaking_kinds = frozenset({16, 17, 18, 36, 37})

    def kind(self, unit: Sequence[int]) -> int:
        return unit[0] >> 1 & 63

    def is_record(self, extradata: bytes) -> bool:
        return len(extradata) > 3 and extradata[:3] not in (b"\0\0\0", b"\0\0\x01")

    def read_record(self, extradata: bytes) -> tuple[int, list[Bytes]]:
        units: list[Bytes] = []
        at = 23
        for _ in range(extradata[22]):
            more, at = _read_list(extradata, at + 3, int.from_bytes(extradata[at + 1 : at + 3], "big"))
            units += more
        return (extradata[21] & 3) + 1, units

    def starts(self, kind: int) -> bool:
        return 16 <= kind < 24


class _Mpeg4Reader(_Reader):
    _notable = _start_codes_before(set(range(256)) - {0xB3, 0xB6})

    def read(self, packet: av.Packet | bytes) -> _Content:
        setup, starts = [], None
        for unit in _split_at_start_codes(memoryview(packet)):
            if unit[0] == 0xB6:
                starts = unit[1] >> 6 == 0 if starts is None else starts
            elif unit[0] != 0xB3:  # 0xB3 holds only a base time, to which others are added.
                setup.append(_strip(unit))
        return _Content(setup, bool(starts))

    def notable(self, packets: Sequence[av.Packet]) -> Iterable[av.Packet]:
        return (packet for packet in packets if packet.is_keyframe or self._notable.search(packet))


class _Av1Reader(_Reader):
    def __init__(self, extradata: bytes) -> None:
        # Four bytes come before the units; no unit begins like the first of them.
        super().__init__(extradata[4:] if extradata[:1] == b"\x81" else extradata)

    def read(self, packet: av.Packet | bytes) -> _Content:
        setup, starts = [], None
        data = memoryview(packet)
        at = 0
        while at < len(data):
            header = data[at]
            if not header & 2:
                raise _UnclearError
            size, start = _read_leb128(data, at + (2 if header & 4 else 1))
            at = start + size
            if at > len(data):
                raise _UnclearError
            kind = header >> 3 & 15
            if kind == 1:
                setup.append(bytes(data[start:at]))
            elif kind in (3, 6) and starts is None:
                # This excludes a key frame that was decoded earlier and is shown again.
                starts = data[start] & 0xF0 == 0x10
        return _Content(setup, bool(starts))


class _Vp9Reader(_Reader):
    def __init__(self, extradata: bytes) -> None:
        self.setup = []

    def read(self, packet: av.Packet | bytes) -> _Content:
        (first,) = memoryview(packet)[:1]
        shown_before_and_type = first >> 1 if first & 0x30 == 0x30 else first >> 2
        return _Content([], shown_before_and_type & 3 == 0)

    def notable(self, packets: Sequence[av.Packet]) -> Iterable[av.Packet]:
        return (packet for packet in packets if packet.is_keyframe)


class _JpegReader(_Reader):
    def __init__(self, extradata: bytes) -> None:
        self.setup = []

    def read(self, packet: av.Packet | bytes) -> _Content:
        header, _, _ = bytes(packet).partition(b"\xff\xda")
        # A picture without tables uses those of the picture before it.
        return _Content([], b"\xff\xdb" in header and b"\xff\xc4" in header)


CODECS: dict[str, Callable[[bytes], _Reader]] = {
    "h264": _H264Reader,
    "hevc": _HevcReader,
    "mpeg4": _Mpeg4Reader,
    "av1": _Av1Reader,
    "libdav1d": _Av1Reader,
    "vp9": _Vp9Reader,
    "mjpeg": _JpegReader,
}


def _split_by_lengths(data: memoryview, length_bytes: int) -> Iterator[memoryview]:
    at = 0
    while at < len(data):
        start = at + length_bytes
        at = start + int.from_bytes(data[at:start], "big")
        if not start < at <= len(data):
            raise _UnclearError
        yield data[start:at]


def _split_at_start_codes(data: Bytes) -> Iterator[Bytes]:
    starts = [match.end() for match in _START_CODE.finditer(data)]
    for start, next_start in pairwise([*starts, len(data) + 3]):
        if start < next_start - 3:
            yield data[start : next_start - 3]


def _strip(unit: Bytes) -> bytes:
    """Remove the zeros that pad a unit up to the next start code."""
    return bytes(unit[:1]) + bytes(unit[1:]).rstrip(b"\0")


def _read_list(data: bytes, at: int, count: int) -> tuple[list[Bytes], int]:
    units = []
    for _ in range(count):
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if not start < at <= len(data):
            raise _UnclearError
        units.append(data[start:at])
    return units, at


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """Return one of the numbers before an SEI message, and the position after it."""
    value = 0
    while data[at] == 255:
        value, at = value + 255, at + 1
    return value + data[at], at + 1


def _read_leb128(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        value |= (data[at + index] & 127) << 7 * index
        if data[at + index] < 128:
            return value, at + index + 1
    raise _UnclearError
