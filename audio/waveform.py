"""From a recording, which is a file or a part of one, to the waveform that the model hears."""

from __future__ import annotations

import io
import math
import os
from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np
import soxr

from audio.audio_file import TOLERANCE_S, RecordingError, check_file, check_length, open_audio
from audio.channels import read_mono
from audio.file_bytes import NamedBytes, Source
from audio.flac_decoder import open_mono_flac
from audio.part import WHOLE, Part
from audio.readers import AudioFile, LibsndfileReader, Promise
from config import DataConfig
from features.feature_spec import FeatureSpec
from storage.audio_sources import fetch_audio, fetch_header

FULL_SCALE = 32768.0
"""Size of a 16-bit sample that stands for 1."""
CANCELLED = "channels cancel each other out: one used"
"""What `load_waveform` counts."""
KEPT_FILES_BYTES = 2**28
"""Files at URLs and in Parquet of which parts were asked for, and that are kept: the next part may be of the same."""


@dataclass(frozen=True)
class _Decoded:
    samples: np.ndarray
    """float32 `[samples]`, or int16 where the file has whole numbers of 16 bits in one channel."""
    sampling_rate: int
    """In Hz."""
    cancelled: bool = False
    """Whether its channels cancel each other out."""


def load_waveform(
    audio: str | os.PathLike[str],
    spec: FeatureSpec,
    data: DataConfig,
    part: Part = WHOLE,
    *,
    expected_duration_s: float | None = None,
    counts: Counter[str] | None = None,
) -> np.ndarray:
    """Decodes a recording to what the model hears.

    Reads every format of libsndfile (WAV, FLAC, Ogg Vorbis, Opus, MP3, …), and by PyAV those of ffmpeg (M4A, WebM, WMA,
    AMR, video, …), at any sampling rate and with any number of channels. What would not fit is refused by the header,
    before its audio is read. A part is decoded at the file's own sampling rate, exactly from its first sample to its
    last, and resampled then: the resampler sees nothing of what lies before and behind.

    Args:
        audio: the audio file: a path, a URL or a place in a Parquet file, see `audio_sources`.
        spec: gives the sampling rate and the longest duration.
        data: gives the limits on the duration, and whether to normalise the peak.
        part: the stretch and the channel that are meant.
        expected_duration_s: how long the manifest says that the recording is; None: it does not say.
        counts: counts what was done that a report should tell (`CANCELLED`).

    Returns:
        Mono waveform, float32 `[samples]` at `spec.sampling_rate`, within ±1; with `data.peak_normalize` the peak is 1.

    Raises:
        RecordingError: the file is missing, unreadable, truncated, too short, too long, or holds NaN or infinity; or it
            has no such part or channel.
        SourceError: its store can't be reached.
    """
    decoded = _decode(_fetch(audio, data, part), spec, data, part)
    waveform, sampling_rate = decoded.samples, decoded.sampling_rate
    if expected_duration_s is not None:
        check_length(len(waveform) / sampling_rate, Promise(expected_duration_s, "the manifest"))
    if counts is not None and decoded.cancelled:
        counts[CANCELLED] += 1
    whole_numbers = waveform.dtype == np.int16
    if sampling_rate != spec.sampling_rate:
        if whole_numbers:
            waveform, whole_numbers = waveform / np.float32(FULL_SCALE), False
        waveform = soxr.resample(waveform, sampling_rate, spec.sampling_rate, quality="HQ")
    waveform = waveform[: spec.window_samples]  # rounding in the resampler may add a sample to a full window
    return _scaled(waveform, FULL_SCALE if whole_numbers else 1.0, normalize=data.peak_normalize)


def _scaled(waveform: np.ndarray, full: float, *, normalize: bool) -> np.ndarray:
    """Brings it into ±1, float32; `full` is what stands for 1 in it."""
    if not len(waveform):
        raise RecordingError("empty: no audio in it")
    peak = max(float(waveform.max(initial=0)), -float(waveform.min(initial=0)))
    if not math.isfinite(peak):
        raise RecordingError("holds samples that are not numbers (NaN or infinity)")
    return np.divide(waveform, np.float32(peak if peak > full or (normalize and peak) else full))


def _decode(source: Source, spec: FeatureSpec, data: DataConfig, part: Part) -> _Decoded:
    """Decodes a part of a file to one channel."""
    check_file(source)
    flac = open_mono_flac(source) if part == WHOLE else None
    if flac:
        check_duration(flac.frames / flac.sampling_rate, spec, data)
        samples = flac.decode()
        if samples is not None:
            check_length(len(samples) / flac.sampling_rate, Promise(flac.frames / flac.sampling_rate))
            return _Decoded(samples, flac.sampling_rate)
    with open_audio(source, in_parts=not part.is_whole) as file:
        _check_channel(file, part)
        promised_s = _length_s(file)
        if promised_s is not None:
            _check_part(promised_s, part)
            check_duration(_part_s(promised_s, part), spec, data)
        decoded = _read(file, part, most=_longest_s(spec, data))
        found_s = len(decoded.samples) / file.sampling_rate
        if promised_s is None and found_s > _longest_s(spec, data):
            raise RecordingError(f"too long: more than the limit of {_longest_s(spec, data):g} s")
        if part.is_whole:
            check_length(found_s, file.promise)
        else:
            _check_part(part.offset_s + found_s, part)
        check_duration(found_s, spec, data)
        return decoded


def _read(file: AudioFile, part: Part, most: float) -> _Decoded:
    """Decodes the part, and of one that is longer than `most` seconds a sample more, which shows it."""
    rate = file.sampling_rate
    start = round(part.offset_s * rate)
    end = start + math.ceil(most * rate) + 1
    if part.duration_s is not None:
        end = min(end, round((part.offset_s + part.duration_s) * rate))
    if file.frames is not None:
        end = min(end, file.frames)
    if isinstance(file, LibsndfileReader) and file.has_whole_numbers:
        return _Decoded(file.whole_numbers(start, end - start), rate)
    samples, cancelled = read_mono(file, start, end - start, part.channel)
    return _Decoded(samples[: file.audio_among(len(samples))] if part.is_whole else samples, rate, cancelled)


def _length_s(file: AudioFile) -> float | None:
    """How long a file is, before it is decoded; None when only decoding tells."""
    if file.frames is not None:
        return file.frames / file.sampling_rate
    return file.promise.seconds if file.promise else None


def recording_duration_s(audio: str, data: DataConfig, part: Part = WHOLE) -> float:
    """Duration of a recording in seconds, by what its header says, or by counting where that can't be believed.

    Raises:
        RecordingError: the file is missing, unreadable or cut off, or has no such part or channel.
        SourceError: its store can't be reached.
    """
    try:
        source, is_whole = (_fetch(audio, data, part), True) if not part.is_whole else fetch_header(audio, data)
    except FileNotFoundError as error:
        raise RecordingError("file not found") from error
    try:
        return _duration_s(source, part, is_whole=is_whole)
    except RecordingError:
        if is_whole:
            raise
    return _duration_s(_fetch(audio, data, part), part)  # the part we had of it was not enough


def _duration_s(source: Source, part: Part, *, is_whole: bool = True) -> float:
    with open_audio(source, in_parts=not part.is_whole) as file:
        _check_channel(file, part)
        if not is_whole and not isinstance(file, LibsndfileReader):
            raise RecordingError("only a part of it was read")
        length_s = file.count() / file.sampling_rate
        _check_part(length_s, part)
        return _part_s(length_s, part)


def _part_s(file_s: float, part: Part) -> float:
    """Duration of a part of a file that is `file_s` long."""
    return file_s - part.offset_s if part.duration_s is None else part.duration_s


def _check_part(file_s: float, part: Part) -> None:
    """Refuses a part that begins or ends behind the end of its file.

    Raises:
        RecordingError: it does.
    """
    if part.offset_s and part.offset_s >= file_s:
        raise RecordingError(f"begins at {part.offset_s:.2f} s, but the file ends at {file_s:.2f} s")
    if part.duration_s is not None and part.offset_s + part.duration_s > file_s + TOLERANCE_S:
        end_s = part.offset_s + part.duration_s
        raise RecordingError(f"ends at {end_s:.2f} s, but the file ends at {file_s:.2f} s")


def _check_channel(file: AudioFile, part: Part) -> None:
    if part.channel is not None and not 0 <= part.channel < file.channels:
        there = "channel 0" if file.channels == 1 else f"the channels 0 to {file.channels - 1}"
        raise RecordingError(f"no channel {part.channel}: the file has {there}")


_kept: OrderedDict[str, NamedBytes] = OrderedDict()


def _fetch(audio: str | os.PathLike[str], data: DataConfig, part: Part) -> Source:
    name = os.fspath(audio)
    if name in _kept:
        _kept.move_to_end(name)
        return _kept[name]
    try:
        source = fetch_audio(audio, data)
    except FileNotFoundError as error:
        raise RecordingError("file not found") from error
    if part.is_whole or not isinstance(source, io.BytesIO):
        return source
    content = _kept[name] = NamedBytes(source.getvalue(), name)
    while len(_kept) > 1 and sum(kept.getbuffer().nbytes for kept in _kept.values()) > KEPT_FILES_BYTES:
        _kept.popitem(last=False)
    return content


def _longest_s(spec: FeatureSpec, data: DataConfig) -> float:
    return min(data.max_duration_s, float(spec.chunk_length_s))


def check_duration(duration_s: float, spec: FeatureSpec, data: DataConfig) -> None:
    """Refuses a duration, of a recording or of the part that it is, that the model or the configuration does not take.

    Raises:
        RecordingError: too short or too long.
    """
    longest_s = _longest_s(spec, data)
    if duration_s > longest_s:
        raise RecordingError(f"too long: {duration_s:.2f} s, the limit is {longest_s:g} s")
    if not duration_s >= data.min_duration_s:  # also refuses NaN
        raise RecordingError(f"too short: {duration_s:.4f} s, the limit is {data.min_duration_s:g} s")
    if not duration_s:
        raise RecordingError("empty: no audio in it")
