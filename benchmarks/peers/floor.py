"""The floor: one core that only decodes the clips and takes one log-mel over the real frames.

libsndfile's decoder (16-bit files as they are, which is its fastest way; this project's own for such files is faster),
and the fastest log-mel at hand: float32 throughout, frames in blocks that stay in the cache, no guard against rounding,
so not exact enough for samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.fft
import scipy.sparse
import soundfile
from numpy.lib.stride_tricks import sliding_window_view

N_FFT, HOP, MEL_BINS, RATE = 400, 160, 80, 16000
FRAMES_AT_ONCE = 128


class Floor:
    """Decoding and one log-mel, in turn over the clips."""

    def __init__(self, files: list[Path]) -> None:
        import librosa

        self._files, self._next = files, 0
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
        self._filters = scipy.sparse.csr_array(librosa.filters.mel(sr=RATE, n_fft=N_FFT, n_mels=MEL_BINS))

    def make(self, count: int) -> int:
        """Makes `count` log-mels; returns how many."""
        for _ in range(count):
            whole_numbers, _ = soundfile.read(self._files[self._next % len(self._files)], dtype="int16")
            self.log_mel(whole_numbers * np.float32(1 / 32768))
            self._next += 1
        return count

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        """Whisper's log-mel of the frames that hold audio, float32 [mel bins, frames]."""
        centred = np.pad(waveform, (N_FFT // 2, N_FFT), mode="reflect")
        frames = -(-(len(waveform) + N_FFT // 2) // HOP)
        analysis = sliding_window_view(centred, N_FFT)[::HOP]
        power = np.empty((N_FFT // 2 + 1, frames), np.float32)
        for start in range(0, frames, FRAMES_AT_ONCE):
            stop = min(start + FRAMES_AT_ONCE, frames)
            parts = scipy.fft.rfft(analysis[start:stop] * self._window, overwrite_x=True).view(np.float32)
            parts *= parts
            power[:, start:stop] = (parts[:, ::2] + parts[:, 1::2]).T
        mel = np.log10(np.maximum(self._filters @ power, np.float32(1e-10)))
        return np.asarray((np.maximum(mel, mel.max() - np.float32(8)) + np.float32(4)) / np.float32(4))
