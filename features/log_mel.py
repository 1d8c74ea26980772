"""From a waveform to Whisper's log-mel. Producer workers load this module: it imports neither torch nor librosa."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy.sparse

from features.feature_spec import FeatureSpec

LOG_FLOOR = -10.0
"""log10 of the smallest mel energy that counts. Source: `WhisperFeatureExtractor` (clamp at 1e-10)."""
DYNAMIC_RANGE = 8.0
"""Decades that are kept below the loudest cell. Source: `WhisperFeatureExtractor`."""
FRAMES_AT_ONCE = 64
"""Frames whose spectra are taken together: 500 kB of buffers."""


def log_mel(waveform: np.ndarray, spec: FeatureSpec) -> tuple[np.ndarray, float]:
    """Whisper's log-mel of the frames that hold audio; all later frames of the window equal one constant.

    Equal, within 1e-4, to `WhisperFeatureExtractor` on the waveform padded with zeros to the model's window; beside
    bare tones as near as the extractor's float32 is to its own result in float64 (about 2e-4).

    Args:
        waveform: float32 `[samples]`, at most `spec.window_samples`.
        spec: the model's feature settings.

    Returns:
        The log-mel, float32 `[num_mel_bins, frames]` with frames ≤ `spec.window_frames`, and the constant of the
        frames after them.

    Raises:
        ValueError: the waveform is longer than the model's window.

    Source: `WhisperFeatureExtractor._torch_extract_fbank_features` of transformers: centred STFT with reflected edges,
    Hann window, Slaney mel filters, log10, 8 decades of dynamic range, (x + 4) / 4.
    """
    if len(waveform) > spec.window_samples:
        raise ValueError(f"waveform of {len(waveform)} samples: the model's window has {spec.window_samples}")
    # Each bin feeds at most two mel filters: the sparse product is faster than BLAS and the same on every machine.
    mel = _mel_filters(spec.num_mel_bins, spec.n_fft, spec.sampling_rate) @ _power_spectrum(waveform, spec)
    np.maximum(mel, np.float32(10.0**LOG_FLOOR), out=mel)
    np.log10(mel, out=mel)
    floor = max(LOG_FLOOR, float(mel.max()) - DYNAMIC_RANGE)
    np.maximum(mel, np.float32(floor), out=mel)
    mel += np.float32(4.0)
    mel /= np.float32(4.0)
    return mel, (floor + 4.0) / 4.0


def frame_count(samples: int, spec: FeatureSpec) -> int:
    """Frames of the log-mel that hold audio, of a waveform of `samples` samples."""
    return min(spec.window_frames, -(-(samples + spec.n_fft // 2) // spec.hop_length))


def _power_spectrum(waveform: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    """Power of the centred STFT with reflected edges, float32 `[bins, frames]`, of the frames that hold audio.

    In float64: beside a strong tone lie cells 8 decades down, where a transform in float32 is good for 1e-4 only. A few
    frames at a time, in buffers that stay in the cache: on a whole clip, twice the time goes into fetching memory.
    """
    half, bins = spec.n_fft // 2, spec.n_fft // 2 + 1
    frames = frame_count(len(waveform), spec)
    padded_samples = min(spec.window_samples, frames * spec.hop_length + half)
    centred = np.empty(half + padded_samples + half)
    centred[half : half + len(waveform)] = waveform
    centred[half + len(waveform) : half + padded_samples] = 0
    centred[:half] = centred[2 * half : half : -1]
    centred[-half:] = centred[-half - 2 : -2 * half - 2 : -1]
    analysis = np.lib.stride_tricks.sliding_window_view(centred, spec.n_fft)[:: spec.hop_length][:frames]
    window = _hann_window(spec.n_fft)
    power = np.empty((bins, frames), np.float32)
    windowed, sums = np.empty((FRAMES_AT_ONCE, spec.n_fft)), np.empty((FRAMES_AT_ONCE, bins))
    spectra = np.empty((FRAMES_AT_ONCE, bins), np.complex128)
    for start in range(0, frames, FRAMES_AT_ONCE):
        count = min(FRAMES_AT_ONCE, frames - start)
        np.multiply(analysis[start : start + count], window, out=windowed[:count])
        np.fft.rfft(windowed[:count], axis=1, out=spectra[:count])
        parts = spectra[:count].view(np.float64)  # real, imaginary, real, …
        np.square(parts, out=parts)
        np.add(parts[:, ::2], parts[:, 1::2], out=sums[:count])
        power[:, start : start + count] = sums[:count].T
    return power


@lru_cache
def _hann_window(n_fft: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32).astype(np.float64)


@lru_cache
def _mel_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> scipy.sparse.csr_array:
    """Triangular mel filters of equal area up to 8 kHz, sparse float32 `[num_mel_bins, n_fft // 2 + 1]`.

    Written out here because importing `transformers.audio_utils.mel_filter_bank`, which it equals, costs each worker a
    second.

    Source: M. Slaney, Auditory Toolbox, 1998; `librosa.filters.mel(htk=False, norm="slaney")`.
    """
    edges_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(8000.0), num_mel_bins + 2))
    bins_hz = np.linspace(0.0, sampling_rate / 2, n_fft // 2 + 1)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return scipy.sparse.csr_array(filters.astype(np.float32))


MEL_LINEAR_HZ = 200.0 / 3
"""Width of one mel below 1 kHz on Slaney's scale."""
MEL_LOG_START_HZ = 1000.0
MEL_LOG_START = MEL_LOG_START_HZ / MEL_LINEAR_HZ
MEL_LOG_STEP = math.log(6.4) / 27.0
"""Natural logarithm of the ratio of two frequencies one mel apart, above 1 kHz."""


def _hz_to_mel(frequency_hz: float) -> float:
    if frequency_hz < MEL_LOG_START_HZ:
        return frequency_hz / MEL_LINEAR_HZ
    return MEL_LOG_START + math.log(frequency_hz / MEL_LOG_START_HZ) / MEL_LOG_STEP


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    logarithmic = MEL_LOG_START_HZ * np.exp(MEL_LOG_STEP * (mels - MEL_LOG_START))
    return np.where(mels < MEL_LOG_START, mels * MEL_LINEAR_HZ, logarithmic)
