"""The fast way to decode the commonest kind of recording: FLAC with one channel of 16 bits.

FLAC is lossless: every decoder gives the same numbers, and this one takes two thirds of libsndfile's time. Other or
damaged files go to libsndfile, which reports the error. So do all files where miniaudio is not installed, or lacks the
functions used here, which it does not document.
"""

from __future__ import annotations

import io
import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_HEADER_BYTES = 42
_BITS = 16
_FUNCTIONS = ("ma_dr_flac_open_memory", "ma_dr_flac_read_pcm_frames_s16", "ma_dr_flac_close")
_LARGEST_TAGS_BYTES = 2**24
"""What a file may hold besides its audio, a picture for example; more is left to libsndfile, which skips it."""


@dataclass(frozen=True)
class MonoFlac:
    """A FLAC file with one channel of 16 bits, of which only the header has been read."""

    source: str | os.PathLike[str] | io.BytesIO
    sampling_rate: int
    """In Hz."""
    frames: int
    """Samples, as the header says."""

    def decode(self) -> NDArray[np.int16] | None:
        """All samples that are intact, int16 [samples], at most `frames`: fewer in a truncated or damaged file.

        Returns:
            None where nothing can be decoded, the file is far larger than its header says, or miniaudio can't be used.
        """
        ffi, lib = _load_miniaudio()
        if not lib:
            return None
        data = self._read(4 * self.frames + _LARGEST_TAGS_BYTES)
        # Not miniaudio.decode, which decodes all there is: perhaps hours, where the header says seconds.
        flac = lib.ma_dr_flac_open_memory(data, len(data), ffi.NULL) if data else ffi.NULL
        if flac == ffi.NULL:
            return None
        samples = np.empty(self.frames, np.int16)
        try:
            room = ffi.from_buffer("ma_dr_flac_int16[]", samples)
            return samples[: lib.ma_dr_flac_read_pcm_frames_s16(flac, self.frames, room)]
        finally:
            lib.ma_dr_flac_close(flac)

    def _read(self, largest: int) -> bytes:
        """The file; nothing when it can't be read, or has more bytes than `largest`."""
        if isinstance(self.source, io.BytesIO):
            data = self.source.getvalue()
        else:
            try:
                with open(self.source, "rb") as file:
                    data = file.read(largest + 1)
            except OSError:
                return b""
        return data if len(data) <= largest else b""


@cache
def _load_miniaudio() -> tuple[Any, Any]:
    """miniaudio's `ffi` and `lib`; None for both where they can't be used. Takes a third of a second, once."""
    try:
        from miniaudio import ffi, lib

        for name in _FUNCTIONS:
            getattr(lib, name)
    except (ImportError, AttributeError, OSError) as error:  # OSError: its shared library does not load
        logger.warning("FLAC is decoded by libsndfile, which is slower: miniaudio can't be used (%s)", error)
        return None, None
    return ffi, lib


def open_mono_flac(source: str | os.PathLike[str] | io.BytesIO) -> MonoFlac | None:
    """Reads the header of a file, and tells whether it is one of the kind.

    Args:
        source: the path of a file (not of a pipe, which would be waited for), or a file's bytes.

    Returns:
        None for any other file, for one without a length in its header, and where there is none.

    Source: RFC 9639, "Free Lossless Audio Codec", sections 6 and 8.2: the marker, then the block STREAMINFO.
    """
    try:
        if isinstance(source, io.BytesIO):
            header = bytes(source.getbuffer()[:_HEADER_BYTES])
        else:
            with open(source, "rb", buffering=0) as file:
                header = file.read(_HEADER_BYTES)
    except OSError:
        return None
    if len(header) < _HEADER_BYTES or header[:4] != b"fLaC" or header[4] & 0x7F:
        return None
    facts = int.from_bytes(header[18:26], "big")  # rate: 20 bits, channels - 1: 3, bits - 1: 5, samples: 36
    sampling_rate, channels, bits = facts >> 44, (facts >> 41 & 7) + 1, (facts >> 36 & 31) + 1
    frames = facts & 2**36 - 1
    if (channels, bits) != (1, _BITS) or not sampling_rate or not frames:
        return None
    return MonoFlac(source, sampling_rate, frames)
