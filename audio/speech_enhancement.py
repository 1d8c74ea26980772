"""Noise reduction by spectral subtraction: what the software of telephones and conferences does to speech."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FRAME = 512
"""Samples of a frame, twice the hop: 32 ms at 16 kHz."""
QUIET_SHARE = 0.1
"""Share of the frames, the quietest, from which the noise is learnt."""
OVERSUBTRACTION = 2.0
"""How often the mean noise is taken away: noise fluctuates, and what stays of its peaks would sound like tones."""
LOWEST_GAIN = 0.1
"""-20 dB: what is left where there is only noise."""
MOST_NOISE = 0.25
"""Noise is taken for at most this share of the clip's power: without a pause, the quietest frames hold speech."""


def reduce_noise(waveform: Floats) -> Floats:
    """Reduces steady noise; float32 [samples] → float32 [samples], in time with the original.

    The noise spectrum is the mean over the quietest frames; each cell of the spectrogram is turned down by the share of
    noise in it.

    Source: Berouti, Schwartz & Makhoul 1979, "Enhancement of speech corrupted by acoustic noise": over-subtraction and
    a spectral floor; here with the power smoothed over neighbouring cells against musical noise.
    """
    hop = FRAME // 2
    window = np.sqrt(np.hanning(FRAME + 1)[:-1]).astype(np.float32)  # its square, overlapped by half, adds up to 1
    frames = -(-len(waveform) // hop) + 1
    padded = np.zeros((frames + 1) * hop, dtype=np.float32)
    padded[hop : hop + len(waveform)] = waveform
    spectra = scipy.fft.rfft(sliding_window_view(padded, FRAME)[::hop] * window)
    spectra *= _gains(np.square(spectra.real) + np.square(spectra.imag))
    pieces = scipy.fft.irfft(spectra, FRAME) * window
    result = np.zeros((frames + 1, hop), dtype=np.float32)
    result[:-1] = pieces[:, :hop]
    result[1:] += pieces[:, hop:]
    return result.reshape(-1)[hop : hop + len(waveform)]


def _gains(power: Floats) -> Floats:
    """Gain per cell, `LOWEST_GAIN` to 1; power: [frames, bins]."""
    subtracted = np.float32(OVERSUBTRACTION) * _smooth(_noise_spectrum(power))
    smooth = _smooth(_smooth(power).T).T
    share = subtracted / np.maximum(np.maximum(smooth, subtracted), np.finfo(np.float32).tiny)
    return np.maximum(1 - share, np.float32(LOWEST_GAIN))


def _noise_spectrum(power: Floats) -> Floats:
    """Mean power per bin over the quietest frames that are not digital silence, [bins]."""
    energies = power.sum(axis=1)
    sounding = np.flatnonzero(energies > 1e-10 * energies.max())
    if not len(sounding):
        return np.zeros_like(power[0])
    quiet = np.argsort(energies[sounding], kind="stable")[: max(1, round(QUIET_SHARE * len(sounding)))]
    noise = power[sounding[quiet]].mean(axis=0)
    most = MOST_NOISE * float(energies.mean())
    return noise * np.float32(min(1.0, most / float(noise.sum())))


def _smooth(power: Floats) -> Floats:
    """Mean of each cell with its two neighbours along the first axis."""
    smooth = power.copy()
    smooth[1:] += power[:-1]
    smooth[:-1] += power[1:]
    smooth /= np.float32(3)
    return smooth
