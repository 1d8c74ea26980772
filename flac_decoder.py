"""The fast way to decode the commonest kind of recording: FLAC with one channel of 16 bits.

FLAC is lossless: every decoder gives the same numbers, and this one takes two thirds of libsndfile's time. All other
files, and those that are not in order, are libsndfile's, which also finds the words for what is wrong with them.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 42
_BITS = 16


@dataclass(frozen=True)
class MonoFlac:
    """A FLAC file with one channel of 16 bits, not yet decoded."""

    data: bytes
    sampling_rate: int
    """In Hz."""
    frames: int
    """Samples, as the header says."""

    def decode(self) -> NDArray[np.int16] | None:
        """All samples that are intact, int16 [samples]: fewer than `frames` in a truncated or damaged file.

        Returns:
            None where nothing can be decoded.
        """
        import miniaudio  # a third of a second: only for those who have such files

        try:
            return np.frombuffer(miniaudio.flac_read_s16(self.data).samples, np.int16)
        except miniaudio.DecodeError:
            return None


def open_mono_flac(source: str | os.PathLike[str] | io.BytesIO) -> MonoFlac | None:
    """Reads a file whole if it is one of the kind, by its header.

    Args:
        source: a path, or a file's bytes, read from their beginning; they are left where they stood.

    Returns:
        None for any other file, for one without a length in its header, and where there is none.

    Source: RFC 9639, "Free Lossless Audio Codec", sections 6 and 8.2: the marker, then the block STREAMINFO.
    """
    try:
        with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
            header = file.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES or header[:4] != b"fLaC" or header[4] & 0x7F:
                return None
            facts = int.from_bytes(header[18:26], "big")  # rate: 20 bits, channels - 1: 3, bits - 1: 5, samples: 36
            sampling_rate, channels, bits, frames = (
                facts >> 44,
                (facts >> 41 & 7) + 1,
                (facts >> 36 & 31) + 1,
                facts & 2**36 - 1,
            )
            if (channels, bits) != (1, _BITS) or not sampling_rate or not frames:
                return None
            return MonoFlac(header + file.read(), sampling_rate, frames)
    except OSError:
        return None
