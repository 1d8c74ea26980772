"""A stretch of an MP3 file as a file of its own, so that a decoder neither walks to it nor guesses its length.

libmpg123 finds a place in a file of hours by going through all frames before it (a second for 3 h), and stops where the
length ends that it has estimated. What is made here begins a few frames earlier, and says how many frames it has.
The decoded samples are those of the whole file, to the last bit.
"""

from __future__ import annotations

import io
import itertools
import struct

from audio.file_bytes import FileBytes
from audio.mp3_frames import DECODER_DELAY, HEADER_BYTES, Mp3Header, Mp3Index, frame_bytes

_PREROLL_FRAMES = 14
"""Frames that are decoded before a stretch: up to 9 hold its bits (511 bytes), and 3 ring into it."""
_SYNTHESIS_PERIOD = {1152: 2, 576: 4}
"""Frames (by their samples) after which a decoder's window stands where it stood: rounding repeats only then."""


def cut_mp3(file: FileBytes, index: Mp3Index, start: int, samples: int) -> tuple[io.BytesIO, int]:
    """Makes an MP3 file of a stretch of another, with a Xing header that says how many frames it has.

    Args:
        file: the file.
        index: its index.
        start: first sample of the stretch.
        samples: its length.

    Returns:
        The new file, and the place in its decoded samples where the stretch begins.
    """
    header, length = index.header, index.header.frame_samples
    first_raw = start + header.skipped
    first = max(0, first_raw // length - _PREROLL_FRAMES)
    last = min(len(index.begins), -(-(first_raw + samples) // length) + 1)
    stop = int(index.begins[last]) if last < len(index.begins) else index.end
    begin = int(index.begins[first]) if first < len(index.begins) else stop
    data = bytearray(file.read(begin, stop - begin))
    if first:
        _mute_without_bits(data, [int(at) - begin for at in index.begins[first:last]], header)
    empty = (first + header.skipped // length - 1) % _SYNTHESIS_PERIOD[length] + 1
    lead = _leading_frames(header, empty, last - first + empty)
    return io.BytesIO(lead + data), first_raw + (empty - first) * length - DECODER_DELAY


def _mute_without_bits(data: bytearray, begins: list[int], header: Mp3Header) -> None:
    """Silences the first frames, whose bits lie in frames before these: libmpg123 would complain on stderr."""
    kept_bits, reservoir = (1, 511) if header.version == 3 else (0, 255)  # the pointer has 9 bits, or 8
    found = 0
    for at, following in itertools.pairwise(begins):
        if found >= reservoir:
            return
        side = at + HEADER_BYTES + (0 if data[at + 1] & 1 else 2)  # behind the header there may be a checksum
        if kept_bits:
            data[side + 1] &= 0x80
        data[side + 1 + kept_bits : side + header.side_bytes] = bytes(header.side_bytes - 1 - kept_bits)
        found += following - side - header.side_bytes


def _leading_frames(header: Mp3Header, empty: int, promised: int) -> bytes:
    """A frame with a Xing header that promises so many frames, and so many empty ones, which are among them."""
    needed = HEADER_BYTES + header.side_bytes + 12
    second = header.start[1] | 1  # without a checksum
    choices = [(second, bit_rate << 4 | header.start[2] & 0x0C) for bit_rate in range(1, 15)]
    chosen = next(choice for choice in choices if frame_bytes(*choice) >= needed)
    start, size = bytes([0xFF, *chosen, header.start[3]]), frame_bytes(*chosen)
    tag = b"Xing" + struct.pack(">II", 1, promised)
    return (start + bytes(header.side_bytes) + tag).ljust(size, b"\0") + empty * start.ljust(size, b"\0")
