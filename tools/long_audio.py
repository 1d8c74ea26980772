"""Audio files of any length as the model hears them, a block at a time: hours of audio never lie in memory together."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import soxr

from audio.audio_file import RecordingError, open_audio
from audio.channels import read_mono
from config import DataConfig
from storage.audio_sources import fetch_audio

READ_S = 10.0
"""Audio that is decoded at a time, in seconds."""


class AudioBlocks:
    """The audio of one file, read forwards; the caller drops what it is done with."""

    def __init__(self, audio: str, sampling_rate: int, peak_normalize: bool) -> None:
        """
        Args:
            audio: path, URL or place in Parquet, as a manifest names it.
            sampling_rate: of what is read, in Hz.
            peak_normalize: whether `fill` scales each block to a peak of 1, as the training did with recordings.
        """
        self._sampling_rate, self._peak_normalize = sampling_rate, peak_normalize
        self._pieces = _decode(audio, sampling_rate)
        self._waveform = np.zeros(0, np.float32)
        self._dropped = 0
        self._file_ended = False

    @property
    def start_s(self) -> float:
        """Where the block begins that `fill` gives, in seconds."""
        return self._dropped / self._sampling_rate

    def fill(self, seconds: float) -> np.ndarray:
        """What comes next, float32 `[samples]` within ±1: `seconds` of it, or what is left.

        Raises:
            RecordingError: the file is missing, unreadable or damaged.
            SourceError: its store can't be reached.
        """
        wanted = round(seconds * self._sampling_rate)
        pieces, count = [self._waveform], len(self._waveform)
        while count < wanted and not self._file_ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._file_ended = True
            else:
                pieces.append(piece)
                count += len(piece)
        if len(pieces) > 1:
            self._waveform = np.concatenate(pieces)
        block = self._waveform[:wanted]
        peak = float(np.abs(block).max(initial=0.0))
        if not np.isfinite(peak):
            raise RecordingError("holds samples that are not numbers (NaN or infinity)")
        return block / np.float32(peak) if peak > 1.0 or (self._peak_normalize and peak > 0.0) else block

    def ends_with(self, samples: int) -> bool:
        """Whether the first `samples` of the block are all that is left of the file."""
        return self._file_ended and samples >= len(self._waveform)

    def drop(self, samples: int) -> None:
        """Lets go of the first `samples` of the block: they are done."""
        samples = min(samples, len(self._waveform))
        self._waveform = self._waveform[samples:]
        self._dropped += samples

    def close(self) -> None:
        """Closes the file."""
        self._pieces.close()


def _decode(audio: str, sampling_rate: int) -> Generator[np.ndarray]:
    """The audio of a file, the mean of its channels, resampled as a stream."""
    try:
        source = fetch_audio(audio, DataConfig())
    except FileNotFoundError as error:
        raise RecordingError("file not found") from error
    with open_audio(source) as file:
        stream = soxr.ResampleStream(file.sampling_rate, sampling_rate, 1, dtype="float32", quality="HQ")
        same, start = file.sampling_rate == sampling_rate, 0
        while len(piece := read_mono(file, start, round(READ_S * file.sampling_rate))[0]):
            start += len(piece)
            yield piece if same else stream.resample_chunk(piece)
        if not same:
            yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
