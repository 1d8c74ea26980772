"""From a recording to the waveform that the model hears."""

from __future__ import annotations

import io
import math
import os

import numpy as np
import soxr

from audio.audio_file import RecordingError, check_file, open_audio, read_mono
from audio.flac_decoder import open_mono_flac
from config import DataConfig
from features.feature_spec import FeatureSpec
from storage.audio_sources import fetch_audio, fetch_header

TRUNCATION_TOLERANCE_S = 0.1
"""How much less audio than its header promises a file may hold: some encoders pad their last block."""

FULL_SCALE = 32768.0
"""Size of a 16-bit sample that stands for 1."""


def load_waveform(audio: str | os.PathLike[str], spec: FeatureSpec, data: DataConfig) -> np.ndarray:
    """Decodes a recording to what the model hears.

    Reads every format of libsndfile (WAV, FLAC, Ogg Vorbis, Opus, MP3, …) at any sampling rate and with any number of
    channels. Files that would not fit are refused by their header, before their audio is read.

    Args:
        audio: the audio file: a path, a URL or a place in a Parquet file, see `audio_sources`.
        spec: gives the sampling rate and the longest duration.
        data: gives the limits on the duration, and whether to normalise the peak.

    Returns:
        Mono waveform, float32 `[samples]` at `spec.sampling_rate`, within ±1; with `data.peak_normalize` the peak is 1.

    Raises:
        RecordingError: the file is missing, unreadable, truncated, too short, too long, or holds NaN or infinity.
        SourceError: its store can't be reached.
    """
    waveform, sampling_rate, frames = _decode(_fetch(audio, data), spec, data)
    if len(waveform) < frames - TRUNCATION_TOLERANCE_S * sampling_rate:
        found_s, expected_s = len(waveform) / sampling_rate, frames / sampling_rate
        raise RecordingError(f"truncated: {found_s:.2f} s of audio where the header says {expected_s:.2f} s")
    whole_numbers = waveform.dtype == np.int16
    if sampling_rate != spec.sampling_rate:
        if whole_numbers:
            waveform, whole_numbers = waveform / np.float32(FULL_SCALE), False
        waveform = soxr.resample(waveform, sampling_rate, spec.sampling_rate, quality="HQ")
    waveform = waveform[: spec.window_samples]  # rounding in the resampler may add a sample to a full window
    full = FULL_SCALE if whole_numbers else 1.0
    peak = max(float(waveform.max(initial=0)), -float(waveform.min(initial=0)))
    if not math.isfinite(peak):
        raise RecordingError("holds samples that are not numbers (NaN or infinity)")
    level = peak if peak > full or (data.peak_normalize and peak > 0.0) else full
    return np.divide(waveform, np.float32(level))


def _decode(source: str | io.BytesIO, spec: FeatureSpec, data: DataConfig) -> tuple[np.ndarray, int, int]:
    """Decodes a file, given by its path or its bytes, to one channel.

    Returns:
        Its samples, float32, or int16 where the file has whole numbers of 16 bits in one channel; its sampling rate;
        and how many samples its header promises.
    """
    check_file(source)
    flac = open_mono_flac(source)
    if flac:
        check_duration(flac.frames / flac.sampling_rate, spec, data)
        samples = flac.decode()
        if samples is not None:
            return samples, flac.sampling_rate, flac.frames
    with open_audio(source) as file:
        check_duration(file.frames / file.samplerate, spec, data)
        if file.subtype == "PCM_16" and file.channels == 1:
            return file.read(dtype="int16"), file.samplerate, file.frames
        return read_mono(file, file.frames), file.samplerate, file.frames


def recording_duration_s(audio: str, data: DataConfig) -> float:
    """Duration of a recording in seconds, by its header.

    Raises:
        RecordingError: the file is missing or unreadable.
        SourceError: its store can't be reached.
    """
    try:
        source, is_whole = fetch_header(audio, data)
    except FileNotFoundError as error:
        raise RecordingError("file not found") from error
    try:
        return _duration_s(source)
    except RecordingError:
        if is_whole:
            raise
    return _duration_s(_fetch(audio, data))  # what comes before the audio was longer than the part we had


def _duration_s(source: str | io.BytesIO) -> float:
    with open_audio(source) as file:
        return float(file.frames / file.samplerate)


def _fetch(audio: str | os.PathLike[str], data: DataConfig) -> str | io.BytesIO:
    try:
        return fetch_audio(audio, data)
    except FileNotFoundError as error:
        raise RecordingError("file not found") from error


def check_duration(duration_s: float, spec: FeatureSpec, data: DataConfig) -> None:
    """Refuses a duration that the model or the configuration does not take.

    Raises:
        RecordingError: too short or too long.
    """
    longest_s = min(data.max_duration_s, float(spec.chunk_length_s))
    if duration_s > longest_s:
        raise RecordingError(f"too long: {duration_s:.2f} s, the limit is {longest_s:g} s")
    if not duration_s >= data.min_duration_s:  # also refuses NaN
        raise RecordingError(f"too short: {duration_s:.4f} s, the limit is {data.min_duration_s:g} s")
