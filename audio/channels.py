"""One channel out of several."""

from __future__ import annotations

import math

import numpy as np

from audio.readers import AudioFile

CANCELLED_RATIO = 0.5
"""Channels whose sum is at most this share (-6 dB) of the loudest of them cancel each other out. The sum of equally
loud channels is as soft as that when their correlation is below -0.87, which microphones in one room do not give."""
EQUALLY_LOUD = 0.5
"""A channel of this share of the loudest one's power is as good as it; the first such channel is taken."""


HUM_RATIO = 0.9
"""Below this share it may be that only a hum is left, which all channels have alike: then their changes from sample to
sample are compared, in which low tones are weak."""


class _Levels:
    """How loud channels are, and how loud their sum is, without the constant part of each.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        self._samples = 0
        self._sums, self._squares = np.zeros(channels), np.zeros(channels)
        self._mean_square = 0.0

    def add(self, block: np.ndarray, mean: np.ndarray) -> None:
        """Takes the next samples, `[samples, channels]`, and their mean, `[samples]`."""
        self._samples += len(block)
        self._sums += block.sum(axis=0, dtype=np.float64)
        self._squares += np.einsum("sc,sc->c", block, block)
        self._mean_square += float(np.einsum("s,s->", mean, mean))

    @property
    def powers(self) -> np.ndarray:
        """Of each channel."""
        with np.errstate(invalid="ignore", over="ignore"):  # infinity stays, and is told elsewhere
            return np.asarray(self._squares / self._samples - np.square(self._sums / self._samples))

    @property
    def ratio(self) -> float:
        """The sum's level as a share of the loudest channel's; infinite where there is nothing to compare."""
        loudest = float(self.powers.max()) if self._samples else 0.0
        if not math.isfinite(loudest) or loudest <= 0:
            return math.inf
        mean = self._mean_square / self._samples - (self._sums.mean() / self._samples) ** 2
        return len(self._sums) * math.sqrt(max(0.0, mean) / loudest)


def read_mono(file: AudioFile, start: int, frames: int, channel: int | None = None) -> tuple[np.ndarray, bool]:
    """One channel of a stretch of a recording.

    Args:
        file: an open recording.
        start: first sample.
        frames: most samples to read of each channel.
        channel: which; None: the mean of all, or one of them when they cancel each other out (a cable of the wrong
            polarity): of their mean nothing is left but what differs between them, which is no speech.

    Returns:
        float32 `[samples]`, at most `frames`; and whether channels cancelled each other out.
    """
    if channel is not None:
        pieces = [np.zeros(0, np.float32), *(block[:, channel].copy() for block in file.blocks(start, frames))]
        return np.concatenate(pieces), False
    pieces, levels = [np.zeros(0, np.float32)], _Levels(file.channels)
    for block in file.blocks(start, frames):
        pieces.append(block[:, 0] if file.channels == 1 else block.mean(axis=1))
        if file.channels > 1:
            levels.add(block, pieces[-1])
    if not _are_cancelled(file, start, frames, levels):
        return np.concatenate(pieces), False
    kept = int(np.argmax(levels.powers >= EQUALLY_LOUD * levels.powers.max()))
    return read_mono(file, start, frames, kept)[0], True


def _are_cancelled(file: AudioFile, start: int, frames: int, levels: _Levels) -> bool:
    """Whether the channels of a stretch cancel each other out; decodes it once more in cases of doubt."""
    if file.channels == 1 or levels.ratio > HUM_RATIO:
        return False
    if levels.ratio <= CANCELLED_RATIO:
        return True
    changes = _Levels(file.channels)
    for block in file.blocks(start, frames):
        change = np.diff(block, axis=0)
        changes.add(change, change.mean(axis=1))
    return changes.ratio <= CANCELLED_RATIO
