"""What the augmentations do to a waveform, as pure functions: everything random comes from the generator given.

All waveforms are float32 [samples], mono, at least one sample, within ±1, and so are the results: as long as before
except for a change of speed, never NaN, and scaled down as a whole where they would exceed ±1. Silence stays silence.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import soxr
from numpy.typing import NDArray

from audio.noise_sources import SILENCE_RMS, color_noise, rms
from audio.room_acoustics import Room
from audio.speech_enhancement import reduce_noise
from audio.time_stretch import stretch

Floats = NDArray[np.float32]

_LARGEST_DENOMINATOR = 100
"""Largest denominator of the ratio by which a pitch shift resamples."""


def change_speed(waveform: Floats, factor: float, sample_rate: int) -> Floats:
    """Changes the tempo at constant pitch. Nothing is cut off: the result has `stretched_samples`.

    Args:
        waveform: float32 [samples].
        factor: 1.25 is a quarter faster.
        sample_rate: in Hz.
    """
    return within_range(stretch(waveform, factor, sample_rate))


def shift_pitch(waveform: Floats, semitones: float, sample_rate: int) -> Floats:
    """Shifts the pitch at constant tempo, by stretching and then resampling. The error is below a quarter of a cent."""
    # A ratio of small whole numbers is resampled three times as fast as an arbitrary one.
    ratio = Fraction(2 ** (semitones / 12)).limit_denominator(_LARGEST_DENOMINATOR)
    stretched = stretch(waveform, 1 / float(ratio), sample_rate)
    return within_range(_fit(soxr.resample(stretched, ratio.numerator, ratio.denominator), len(waveform)))


def add_far_field(waveform: Floats, room: Room) -> Floats:
    """What a distant microphone records: the same words at the same time and level, with the room's reverberation."""
    reverberated = room.reverberate(waveform)
    level = rms(reverberated)
    if level <= SILENCE_RMS:
        return waveform.copy()
    return within_range(reverberated * np.float32(rms(waveform) / level))


def mix_background(waveform: Floats, noise: Floats, focus: float) -> Floats:
    """Mixes in noise of the same length. `focus`: share of speech, SNR = 20 log10(focus / (1 - focus)) dB (RMS)."""
    return _add_noise(waveform, noise, (1 - focus) / focus)


def add_color_noise(waveform: Floats, color: str, gain: float, sample_rate: int, rng: np.random.Generator) -> Floats:
    """Adds coloured noise whose RMS is `gain` times that of the waveform."""
    return _add_noise(waveform, color_noise(len(waveform), color, sample_rate, rng), gain)


def down_upsample(waveform: Floats, rate: int, sample_rate: int) -> Floats:
    """Imitates an old microphone: resamples to `rate` Hz and back, so that what lies above rate / 2 is lost."""
    low = soxr.resample(waveform, sample_rate, rate)
    return within_range(_fit(soxr.resample(low, rate, sample_rate), len(waveform)))


def enhance_speech(waveform: Floats) -> Floats:
    """Reduces steady noise, as the software of telephones does, with its typical loss of faint detail."""
    return within_range(reduce_noise(waveform))


def within_range(waveform: Floats) -> Floats:
    """Scales a waveform of at least one sample down to a peak of 1 if its peak is higher."""
    peak = max(waveform.max(), -waveform.min())
    return waveform / peak if peak > 1 else waveform


def _add_noise(waveform: Floats, noise: Floats, ratio: float) -> Floats:
    speech_level, noise_level = rms(waveform), rms(noise)
    if min(speech_level, noise_level) < SILENCE_RMS:
        return waveform.copy()
    return within_range(waveform + noise * np.float32(ratio * speech_level / noise_level))


def _fit(waveform: Floats, samples: int) -> Floats:
    """Cuts or pads with zeros to a number of samples."""
    return waveform[:samples] if len(waveform) >= samples else np.pad(waveform, (0, samples - len(waveform)))
