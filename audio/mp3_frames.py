"""The frames of an MP3 file, found one after the other: how long it is, and where each stretch of it lies.

A decoder's own length is an estimate from the first frame's bit rate where the file has no Xing header: half of the
audio, or five times as much, when the bit rate varies. Walking from header to header takes 1 µs a frame.

Source: ISO/IEC 11172-3 and 13818-3, layer III; the Xing and LAME headers as LAME 3.100 writes them (VbrTag.c).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from audio.file_bytes import FileBytes, Findings

HEADER_BYTES = 4
_LONGEST_SEARCH_BYTES = 2**16
"""How far behind the tags the first frame may begin."""
_FRAMES_IN_A_ROW = 4
"""Frames that must follow each other before bytes count as MP3 (noise has a valid header every 10 kB)."""
DECODER_DELAY = 529
"""Samples that every decoder puts before the first, and that LAME's header leaves to the decoder to remove."""
_LARGEST_TAIL_BYTES = 4096
"""Tags at the end that Xing's count of bytes may leave out; behind more there may be a second recording."""
_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
"""kbit/s by their index, for MPEG-1, and for MPEG-2 and 2.5."""
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By the version's bits: MPEG-1, 2 and 2.5."""


def frame_bytes(second: int, third: int) -> int:
    """Bytes of a frame whose header goes on with these two; 0 when they are no header of layer III."""
    version, rate_index = second >> 3 & 3, third >> 2 & 3
    if second < 0xE0 or version == 1 or second >> 1 & 3 != 1 or rate_index == 3:
        return 0
    bits_per_s = 1000 * _KBITS[version == 3][third >> 4]
    if not bits_per_s:
        return 0
    return (144 if version == 3 else 72) * bits_per_s // _RATES_HZ[version][rate_index] + (third >> 1 & 1)


_SIZES = [frame_bytes(key >> 8, key & 0xFF) for key in range(2**16)]
"""Bytes of a frame by the second and third byte of its header."""


@lru_cache
def _sizes_of_stream(first: bytes) -> dict[int, int]:
    """As `_SIZES`, for headers of one stream only."""
    keys = [
        key for key, size in enumerate(_SIZES) if size and _is_same_stream(first, bytes([0xFF, key >> 8, key & 0xFF]))
    ]
    return {key: _SIZES[key] for key in keys}


@dataclass(frozen=True)
class Mp3Header:
    """What the first frame says of the file."""

    begin: int
    """Where the first frame lies; a Xing header is in it."""
    start: bytes
    """Its first four bytes."""
    promised_frames: int | None
    """Frames of audio by the Xing header; None without one."""
    promised_bytes: int | None
    skipped: int
    """Samples at the begin that are the encoder's and the decoder's delay, not audio."""
    padding: int
    """Samples at the end that the encoder put there."""

    @property
    def version(self) -> int:
        """Bits of the version: 3 for MPEG-1."""
        return self.start[1] >> 3 & 3

    @property
    def sampling_rate(self) -> int:
        """In Hz."""
        return _RATES_HZ[self.version][self.start[2] >> 2 & 3]

    @property
    def frame_samples(self) -> int:
        """Samples of a frame, of each channel."""
        return 1152 if self.version == 3 else 576

    @property
    def side_bytes(self) -> int:
        """Bytes of the side information, behind the header."""
        mono = self.start[3] >> 6 == 3
        return (17 if mono else 32) if self.version == 3 else (9 if mono else 17)

    @property
    def promised_samples(self) -> int | None:
        """Samples of audio by the Xing header; None without one."""
        if self.promised_frames is None:
            return None
        return self.promised_frames * self.frame_samples - self.skipped - self.padding


def read_mp3_header(file: FileBytes) -> Mp3Header | None:
    """Finds the first frame behind tags, pictures and zeros; None when the file is no MP3."""
    begin = behind_tags(file)
    data = file.read(begin, _LONGEST_SEARCH_BYTES)
    at = data.find(b"\xff")
    while at >= 0:
        if _is_row_of_frames(data, at, whole=begin + len(data) == file.size):
            return _parse(data[at : at + 2048], begin + at)
        at = data.find(b"\xff", at + 1)
    return None


def behind_tags(file: FileBytes) -> int:
    """Where the audio should begin: behind the ID3v2 tags."""
    begin = 0
    while (tag := file.read(begin, 10))[:3] == b"ID3" and len(tag) == 10:
        begin += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
    return begin if begin < file.size else 0


def _is_row_of_frames(data: bytes, at: int, *, whole: bool) -> bool:
    """Whether frames follow each other from here on; fewer are enough where the file ends."""
    first = data[at : at + HEADER_BYTES]
    for number in range(_FRAMES_IN_A_ROW):
        header = data[at : at + HEADER_BYTES]
        size = _SIZES[header[1] << 8 | header[2]] if len(header) == HEADER_BYTES and header[0] == 0xFF else 0
        if not size or not _is_same_stream(first, header):
            ends_here = len(header) < HEADER_BYTES or header[:3] in (b"TAG", b"APE") or at > len(data)
            return whole and number > 1 and ends_here
        at += size
    return True


def _is_same_stream(first: bytes, other: bytes) -> bool:
    """Whether two headers agree on version, layer and sampling rate."""
    return not ((first[1] ^ other[1]) & 0x1E or (first[2] ^ other[2]) & 0x0C)


def _parse(frame: bytes, begin: int) -> Mp3Header:
    plain = Mp3Header(begin, frame[:HEADER_BYTES], None, None, 0, 0)
    at = HEADER_BYTES + plain.side_bytes
    if frame[at : at + 4] not in (b"Xing", b"Info"):
        return plain
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    fields, at = [], at + 8
    for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)):  # frames, bytes, table of contents, quality
        fields.append(int.from_bytes(frame[at : at + 4], "big") if flags & bit else None)
        at += size if flags & bit else 0
    delays = int.from_bytes(frame[at + 21 : at + 24], "big") if frame[at : at + 4] in (b"LAME", b"Lavc", b"Lavf") else 0
    skipped = (delays >> 12) + DECODER_DELAY if delays and fields[0] is not None else 0
    padding = max(0, (delays & 0xFFF) - DECODER_DELAY) if skipped else 0
    return Mp3Header(begin, frame[:HEADER_BYTES], fields[0], fields[1], skipped, padding)


def is_complete(file: FileBytes, header: Mp3Header) -> bool:
    """Whether the Xing header's count of bytes fits the file, so that its count of frames can be believed."""
    if header.promised_frames is None or header.promised_bytes is None:
        return False
    tail = file.size - header.begin - header.promised_bytes
    return 0 <= tail <= _LARGEST_TAIL_BYTES


@dataclass(frozen=True)
class Mp3Index:
    """Where the frames of a file lie."""

    header: Mp3Header
    begins: NDArray[np.int64]
    """Place of each whole frame of audio; the frame with the Xing header is left out."""
    end: int
    """Where the last of them ends."""

    @property
    def samples(self) -> int:
        """Samples of each channel that are there."""
        header = self.header
        counted = len(self.begins) * header.frame_samples - header.skipped
        promised = header.promised_samples
        ends_as_promised = promised is not None and len(self.begins) == header.promised_frames
        return max(0, promised if promised is not None and ends_as_promised else counted)


_indexes: Findings[Mp3Index] = Findings(4)
"""Of 3 hours each 3 MB."""


def index_mp3(file: FileBytes, header: Mp3Header) -> Mp3Index:
    """Walks through all frames, or remembers it of one of the latest files."""
    return _indexes.get(file, lambda file: _walk(file, header))


_BLOCK_BYTES = 2**22
"""Read at a time."""


def _walk(file: FileBytes, header: Mp3Header) -> Mp3Index:
    begins: list[int] = []
    base, end = header.begin, header.begin
    while True:
        data = file.read(base, _BLOCK_BYTES)
        is_last = base + len(data) >= file.size
        at, end = _walk_block(data, base, header, begins, end, is_last=is_last)
        if is_last or not at:
            break
        base += at
    if header.promised_frames is not None:
        del begins[:1]
    return Mp3Index(header, np.array(begins, np.int64), end)


def _walk_block(
    data: bytes, base: int, header: Mp3Header, begins: list[int], end: int, *, is_last: bool
) -> tuple[int, int]:
    """Adds the frames that lie whole in `data`, which is found at `base`.

    Returns:
        How much of it has been used, and where in the file the last frame ended.
    """
    size_by_header, at, size_of_data = _sizes_of_stream(header.start[:3]).get, 0, len(data)
    while at + HEADER_BYTES <= size_of_data:
        size = size_by_header(data[at + 1] << 8 | data[at + 2]) if data[at] == 0xFF else None
        if size:
            if at + size > size_of_data:
                break  # the rest is in the next block, or missing
            begins.append(base + at)
            at += size
            end = base + at
            continue
        at = data.find(b"\xff", at + 1)
        while at >= 0 and not _is_row_of_frames(data, at, whole=is_last):
            at = data.find(b"\xff", at + 1)
        if at < 0:
            return max(1, size_of_data - 2 * _LARGEST_TAIL_BYTES), end
    return at, end
