"""Headers of files that hold plain samples: how much audio they promise, and how much of it is there.

libsndfile gives what is there and says nothing of the rest, and takes a size of 0 for a file without audio. Recorders
and pipes that can't go back write 0, or the largest number that they know, in place of a size.

Sources: Microsoft's "Multimedia Programming Interface" (RIFF), EBU Tech 3306 (RF64), Apple's "AIFF-C" draft of 1991,
the manual page of Sun's audio file format, NIST's SPHERE documentation.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from audio.file_bytes import FileBytes

PLACEHOLDER_BYTES = 1_900_000_000
"""A size of so much and more stands for "unknown": 2e9, 0x7F000000 (SoX), 0x7FFFFFFF, 0xFFFFFFFF (FFmpeg)."""
_MOST_CHUNKS = 1000
_AU_SAMPLE_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
_PLAIN_AIFC = (b"NONE", b"sowt", b"twos", b"raw ", b"fl32", b"FL32", b"fl64", b"FL64", b"in24", b"in32")


@dataclass(frozen=True)
class SampleFacts:
    """What a header says of the file's audio, in bytes."""

    bytes_per_s: float
    promised: int
    """0: unknown."""
    there: int
    """Up to the end of the file, whatever that is."""
    unknown: bool = False
    """Whether the header has a 0 for the size, though audio follows."""


def read_sample_facts(file: FileBytes) -> SampleFacts | None:
    """Reads the header of a WAV, RF64, AIFF, AU or SPHERE file; None for others, and when it is not in order."""
    head = file.read(0, 1024)
    try:
        if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
            return _read_wav(file)
        if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            return _read_aiff(file)
        if head[:4] == b".snd":
            return _read_au(file, head)
        return _read_sphere(file, head) if head.startswith(b"NIST_1A\n") else None
    except (struct.error, ZeroDivisionError, OverflowError):
        return None  # libsndfile has the words for what is wrong


def _chunks(file: FileBytes, at: int, size_format: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and size of the content of each chunk."""
    for _ in range(_MOST_CHUNKS):
        header = file.read(at, 8)
        if len(header) < 8:
            return
        (size,) = struct.unpack(size_format, header[4:])
        yield header[:4], at + 8, size
        at += 8 + size + size % 2


def _read_wav(file: FileBytes) -> SampleFacts | None:
    bytes_per_s, large = 0, None
    for name, at, size in _chunks(file, 12, "<I"):
        if name == b"ds64":
            large = struct.unpack("<8xQ", file.read(at, 16))[0]
        if name == b"fmt ":
            code, _, rate, average, block = struct.unpack("<HHIIH", file.read(at, 14))
            bytes_per_s = rate * block if code in (1, 3, 6, 7, 0xFFFE) else average
        if name == b"data":
            promised = large if large and size == 0xFFFFFFFF else size
            return _judge_wav(file, at, promised, bytes_per_s)
    return None


def _judge_wav(file: FileBytes, at: int, promised: int, bytes_per_s: int) -> SampleFacts:
    there = max(0, file.size - at)
    if promised < there and _is_chunk(file, at + promised + promised % 2):
        there = promised
    if promised >= PLACEHOLDER_BYTES and there < PLACEHOLDER_BYTES:
        promised = 0
        return SampleFacts(bytes_per_s, 0, there)
    return SampleFacts(bytes_per_s, promised, there, unknown=not promised and there > 0)


def _is_chunk(file: FileBytes, at: int) -> bool:
    """Whether what follows the audio is no audio: a chunk, a tag, filling of zeros, or too little to tell."""
    following = file.read(at, 64)
    return len(following) < 64 or not any(following) or all(0x20 <= byte < 0x7F for byte in following[:3])


def _read_aiff(file: FileBytes) -> SampleFacts | None:
    promised, bytes_per_s = 0, 0.0
    for name, at, _ in _chunks(file, 12, ">I"):
        if name == b"COMM":
            common = file.read(at, 22)
            channels, frames, bits, exponent, mantissa = struct.unpack(">hIhHQ", common[:18])
            if len(common) == 22 and file.read(8, 4) == b"AIFC" and common[18:22] not in _PLAIN_AIFC:
                return None
            block = channels * -(-bits // 8)
            promised, bytes_per_s = frames * block, block * mantissa * 2.0 ** ((exponent & 0x7FFF) - 16_383 - 63)
        if name == b"SSND":
            return _judge(file, at + 8, promised, bytes_per_s)
    return None


def _read_au(file: FileBytes, head: bytes) -> SampleFacts | None:
    at, promised, encoding, rate, channels = struct.unpack(">5I", head[4:24])
    block = channels * _AU_SAMPLE_BYTES.get(encoding, 0)
    return _judge(file, at, promised, rate * block) if block else None


def _read_sphere(file: FileBytes, head: bytes) -> SampleFacts | None:
    fields = dict(re.findall(rb"^(\w+) -[is]\d* (\S+)", head, re.M))
    try:
        begin = int(head[8:16])
        rate, count, size, channels = (
            int(fields[name]) for name in (b"sample_rate", b"sample_count", b"sample_n_bytes", b"channel_count")
        )
    except (KeyError, ValueError):
        return None
    if b"embedded" in fields.get(b"sample_coding", b""):
        return None
    return _judge(file, begin, count * size * channels, rate * size * channels)


def _judge(file: FileBytes, at: int, promised: int, bytes_per_s: float) -> SampleFacts:
    there = max(0, file.size - at)
    promised = 0 if promised >= PLACEHOLDER_BYTES > there else promised
    return SampleFacts(bytes_per_s, promised, min(there, promised) if promised else there)
