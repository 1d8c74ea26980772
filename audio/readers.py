"""Open recordings, of which stretches can be decoded: by libsndfile, by libsndfile out of a cut MP3 file, by ffmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soundfile

from audio.ffmpeg_decoder import FfmpegFile
from audio.file_bytes import FileBytes
from audio.mp3_frames import Mp3Index
from audio.mp3_stretch import cut_mp3

READ_SAMPLES = 2**20
"""Samples, all channels together, that are decoded at a time."""
_OPUS_PREROLL_S = 0.5
"""Decoded before a stretch: what an Opus decoder remembers fades, to less than -50 dB in this time."""


@dataclass(frozen=True)
class Promise:
    """How long a file is by its own account."""

    seconds: float
    by: str = "the header"
    """What says so."""


class AudioFile(Protocol):
    """An open recording."""

    sampling_rate: int
    """In Hz."""
    channels: int
    frames: int | None
    """Samples of each channel that are there; None: only decoding tells."""
    promise: Promise | None
    """What must be there, or the file is cut off; None when it does not say."""

    def blocks(self, start: int, frames: int) -> Iterator[np.ndarray]:
        """Decodes at most `frames` samples of each channel, from `start` on.

        Returns:
            Pieces, float32 `[samples, channels]`; fewer samples where the file ends.
        """

    def count(self) -> int:
        """Samples of each channel that are there, found without decoding."""

    def audio_among(self, decoded: int) -> int:
        """How many of all its decoded samples are audio, and no filling of the encoder's last block."""


class LibsndfileReader:
    """A recording that libsndfile reads and counts right.

    Args:
        file: it, open.
        promise: what the file says, if libsndfile does not know that.
    """

    def __init__(self, file: soundfile.SoundFile, promise: Promise | None = None) -> None:
        self._file = file
        self.sampling_rate: int = file.samplerate
        self.channels: int = file.channels
        self.frames: int | None = file.frames
        self.promise: Promise | None = promise or (Promise(file.frames / file.samplerate) if file.samplerate else None)
        self.has_whole_numbers = file.subtype == "PCM_16" and file.channels == 1
        """Whether `whole_numbers` gives all there is."""

    def blocks(self, start: int, frames: int) -> Iterator[np.ndarray]:
        """See `AudioFile`."""
        skipped = min(start, round(_OPUS_PREROLL_S * self.sampling_rate)) if self._file.subtype == "OPUS" else 0
        if start - skipped != self._file.tell():
            self._file.seek(start - skipped)
        return _read(self._file, skipped, frames)

    def whole_numbers(self, start: int, frames: int) -> np.ndarray:
        """As `blocks`, of a file with one channel of 16 bits: int16 `[samples]`."""
        if start != self._file.tell():
            self._file.seek(start)
        samples: np.ndarray = self._file.read(frames, dtype="int16")
        return samples

    def count(self) -> int:
        """See `AudioFile`."""
        return self.frames or 0

    def audio_among(self, decoded: int) -> int:
        """See `AudioFile`."""
        return decoded


class Mp3Reader:
    """An MP3 file whose frames have been found.

    Args:
        source: its bytes; must stay open.
        index: its frames.
    """

    def __init__(self, source: FileBytes, index: Mp3Index) -> None:
        self._source, self._index = source, index
        self.sampling_rate = index.header.sampling_rate
        self.channels = 1 if index.header.start[3] >> 6 == 3 else 2
        self.frames: int | None = index.samples
        promised = index.header.promised_samples
        self.promise: Promise | None = None if promised is None else Promise(promised / self.sampling_rate)

    def blocks(self, start: int, frames: int) -> Iterator[np.ndarray]:
        """See `AudioFile`."""
        content, begin = cut_mp3(self._source, self._index, start, frames)
        with soundfile.SoundFile(content) as file:
            yield from _read(file, begin, frames)

    def count(self) -> int:
        """See `AudioFile`."""
        return self.frames or 0

    def audio_among(self, decoded: int) -> int:
        """See `AudioFile`."""
        return decoded


class FfmpegReader:
    """A recording that ffmpeg reads.

    Args:
        file: it, open.
        promise: what the file says, if ffmpeg does not know that.
    """

    def __init__(self, file: FfmpegFile, promise: Promise | None = None) -> None:
        self._file = file
        self.sampling_rate = file.sampling_rate
        self.channels = file.channels
        self.frames: int | None = None
        said = file.promised_frames
        self.promise: Promise | None = promise or (None if said is None else Promise(said / file.sampling_rate))

    def blocks(self, start: int, frames: int) -> Iterator[np.ndarray]:
        """See `AudioFile`."""
        return self._file.blocks(start, frames)

    def count(self) -> int:
        """See `AudioFile`."""
        return round(self.promise.seconds * self.sampling_rate) if self.promise else self._file.count()

    def audio_among(self, decoded: int) -> int:
        """See `AudioFile`."""
        return self._file.audio_among(decoded)


def _read(file: soundfile.SoundFile, skipped: int, frames: int) -> Iterator[np.ndarray]:
    """Decodes a piece at a time, as there may be 1024 channels; without the first `skipped` samples."""
    count, frames = 0, skipped + frames
    while count < frames:
        block = file.read(min(frames - count, max(1, READ_SAMPLES // file.channels)), np.float32, always_2d=True)
        if not len(block):
            return
        yield block[max(0, skipped - count) :]
        count += len(block)
