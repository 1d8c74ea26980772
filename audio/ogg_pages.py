"""The pages of an Ogg file: whether other streams follow the first, and whether the file was cut off within a page.

libsndfile reads the first of several streams in a row ("chained", what radio stations and `cat` make), and takes a file
that was cut short for whole.

Source: RFC 3533, "The Ogg Encapsulation Format"; the first packets of the codecs as in the Vorbis I specification, RFC
7845 (Opus), the Speex manual, and xiph.org's "Ogg FLAC mapping".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from audio.file_bytes import FileBytes, Findings

_HEADER_BYTES = 27
_LARGEST_HEADER_BYTES = _HEADER_BYTES + 255
_BEGIN_OF_STREAM = 2
_OPUS_RATE_HZ = 48_000
"""Opus counts at this rate, whatever it was recorded at."""
_NO_POSITION = 2**64 - 1
_SEARCH_BYTES = 2**16


@dataclass(frozen=True)
class _Page:
    is_first: bool
    """Of its stream."""
    position: int
    """Samples of the stream up to its end; `_NO_POSITION` when no packet ends in it."""
    serial: bytes
    packet: bytes
    """Begin of its content, where it is the first of its stream."""
    is_whole: bool


@dataclass
class _Stream:
    serial: bytes
    sampling_rate: int
    """0 for what is no audio."""
    skipped: int
    position: int = 0

    @property
    def duration_s(self) -> float:
        return max(0, self.position - self.skipped) / self.sampling_rate if self.sampling_rate else 0.0


@dataclass(frozen=True)
class OggFacts:
    """What the pages say of a file."""

    is_plain: bool
    """One stream of Vorbis or Opus and nothing else."""
    duration_s: float
    """Of all streams in a row, up to the last whole page."""
    promised_s: float | None
    """Where the last page, which was cut off, should have ended; None when none was, or it does not say."""


_facts: Findings[OggFacts] = Findings(64)


def read_ogg_facts(file: FileBytes) -> OggFacts:
    """Goes through the headers of all pages, or remembers what they said of one of the latest files."""
    return _facts.get(file, _go_through)


def _go_through(file: FileBytes) -> OggFacts:
    streams: list[_Stream] = []
    promised_s, codecs, before = None, set(), False
    chained = multiplexed = False
    for page in _pages(file):
        if page.is_first:
            codec, rate, skipped = _read_codec(page.packet)
            codecs.add(codec)
            multiplexed |= before
            chained |= bool(streams) and not before
            streams.append(_Stream(page.serial, rate, skipped))
        before = page.is_first
        if page.position == _NO_POSITION or not streams:
            continue
        stream = next((s for s in reversed(streams) if s.serial == page.serial), streams[-1])
        if page.is_whole:
            stream.position = page.position
        else:
            found = stream.position
            stream.position = page.position
            promised_s = sum(s.duration_s for s in streams)
            stream.position = found
    plain = codecs <= {"vorbis", "opus"} and not chained and not multiplexed
    return OggFacts(plain, sum(stream.duration_s for stream in streams), promised_s)


def _pages(file: FileBytes) -> Iterator[_Page]:
    at = 0
    while True:
        header = file.read(at, _LARGEST_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return
        if not header.startswith(b"OggS"):
            at = _next_page(file, at + 1)
            if at < 0:
                return
            continue
        segments = header[_HEADER_BYTES : _HEADER_BYTES + header[26]]
        begin = at + _HEADER_BYTES + header[26]
        at = begin + sum(segments)
        is_first = bool(header[5] & _BEGIN_OF_STREAM)
        yield _Page(
            is_first, int.from_bytes(header[6:14], "little"), header[14:18],
            file.read(begin, 64) if is_first else b"", at <= file.size,
        )  # fmt: skip


def _next_page(file: FileBytes, start: int) -> int:
    """Place of the next page, or -1."""
    while block := file.read(start, _SEARCH_BYTES):
        found = block.find(b"OggS")
        if found >= 0:
            return start + found
        if len(block) < _SEARCH_BYTES:
            return -1
        start += _SEARCH_BYTES - 3
    return -1


def _read_codec(packet: bytes) -> tuple[str, int, int]:
    """Name, sampling rate and samples to skip of the codec whose first packet this is; rate 0 for what is no audio."""
    if packet.startswith(b"\x01vorbis"):
        return "vorbis", int.from_bytes(packet[12:16], "little"), 0
    if packet.startswith(b"OpusHead"):
        return "opus", _OPUS_RATE_HZ, int.from_bytes(packet[10:12], "little")
    if packet.startswith(b"Speex   "):
        return "speex", int.from_bytes(packet[36:40], "little"), 0
    if packet.startswith(b"\x7fFLAC"):
        return "flac", int.from_bytes(packet[27:30], "big") >> 4, 0
    return "other", 0, 0
