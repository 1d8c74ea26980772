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


class Mix:
    """The mean of channels, added up piece by piece, and what shows whether they cancel each other out.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        self._pieces = [np.zeros(0, np.float32)]
        self._sums, self._squares = np.zeros(channels), np.zeros(channels)

    def add(self, block: np.ndarray) -> None:
        """Takes the next samples, float32 `[samples, channels]`."""
        if block.shape[1] == 1:
            self._pieces.append(block[:, 0])
            return
        self._pieces.append(block.mean(axis=1))
        self._sums += block.sum(axis=0, dtype=np.float64)
        self._squares += np.einsum("sc,sc->c", block, block)

    def mean(self) -> np.ndarray:
        """float32 `[samples]`."""
        return np.concatenate(self._pieces)

    def kept_channel(self, mean: np.ndarray) -> int | None:
        """The channel to use in place of their mean when they cancel each other out; None when they do not."""
        channels, samples = len(self._sums), len(mean)
        if channels == 1 or not samples:
            return None
        powers = self._squares / samples - np.square(self._sums / samples)  # without the constant part
        loudest, power = float(powers.max()), float(mean.var(dtype=np.float64)) * channels**2
        if not math.isfinite(loudest) or loudest <= 0 or power > CANCELLED_RATIO**2 * loudest:
            return None
        return int(np.argmax(powers >= EQUALLY_LOUD * loudest))


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
    mix = Mix(file.channels)
    for block in file.blocks(start, frames):
        mix.add(block)
    mean = mix.mean()
    kept = mix.kept_channel(mean)
    if kept is None:
        return mean, False
    return read_mono(file, start, frames, kept)[0], True
