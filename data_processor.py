"""From a recording to its log-mel, from a transcript to its labels, as Whisper wants them.

Nothing here imports torch or transformers at import time: every producer worker loads this module.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.sparse
import soxr
from tokenizers import Tokenizer

from audio_file import RecordingError, check_file, open_audio, read_mono
from audio_sources import fetch_audio, fetch_header
from config import DataConfig, ModelConfig, UserError
from flac_decoder import open_mono_flac

LOG_FLOOR = -10.0
"""log10 of the smallest mel energy that counts. Source: `WhisperFeatureExtractor` (clamp at 1e-10)."""
DYNAMIC_RANGE = 8.0
"""Decades that are kept below the loudest cell. Source: `WhisperFeatureExtractor`."""
TRUNCATION_TOLERANCE_S = 0.1
"""How much less audio than its header promises a file may hold: some encoders pad their last block."""
FULL_SCALE = 32768.0
"""Size of a 16-bit sample that stands for 1."""
FRAMES_AT_ONCE = 64
"""Frames whose spectra are taken together: 500 kB of buffers."""


class ModelFilesError(UserError):
    """The model's folder or Hub repository lacks what is needed to make samples for it."""


@dataclass(frozen=True)
class FeatureSpec:
    """What the log-mel features of a model look like."""

    num_mel_bins: int
    sampling_rate: int
    """In Hz."""
    n_fft: int
    """Samples per analysis window."""
    hop_length: int
    """Samples from one frame to the next."""
    chunk_length_s: int
    """The model's window in seconds: every input is padded to it."""

    @property
    def window_samples(self) -> int:
        """Samples in the model's window."""
        return self.chunk_length_s * self.sampling_rate

    @property
    def window_frames(self) -> int:
        """Log-mel frames in the model's window."""
        return self.window_samples // self.hop_length

    def check_sample_rate(self, sample_rate: int) -> None:
        """Refuses a configured sampling rate that is not the model's.

        Raises:
            UserError: the two differ.
        """
        if sample_rate != self.sampling_rate:
            raise UserError(
                f"audio_augmentation.sample_rate is {sample_rate} Hz but the model takes {self.sampling_rate} Hz; "
                f"set --audio_augmentation.sample_rate {self.sampling_rate}"
            )


def load_feature_spec(model_name: str) -> FeatureSpec:
    """Reads the feature settings of a model from its preprocessor configuration.

    Args:
        model_name: Hub name or folder.

    Raises:
        ModelFilesError: there is no such model, or it is not a Whisper model.
    """
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    try:
        settings, _ = FeatureExtractionMixin.get_feature_extractor_dict(model_name)
        return FeatureSpec(
            num_mel_bins=int(settings["feature_size"]),
            sampling_rate=int(settings["sampling_rate"]),
            n_fft=int(settings["n_fft"]),
            hop_length=int(settings["hop_length"]),
            chunk_length_s=int(settings["chunk_length"]),
        )
    except (OSError, ValueError) as error:
        raise _model_files_error(model_name, "a preprocessor_config.json", error) from error
    except KeyError as error:
        raise ModelFilesError(
            f"the preprocessor configuration of {model_name!r} has no {error}: not a Whisper model?"
        ) from error


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


def _power_spectrum(waveform: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    """Power of the centred STFT with reflected edges, float32 `[bins, frames]`, of the frames that hold audio.

    In float64: beside a strong tone lie cells 8 decades down, where a transform in float32 is good for 1e-4 only. A few
    frames at a time, in buffers that stay in the cache: on a whole clip, twice the time goes into fetching memory.
    """
    half, bins = spec.n_fft // 2, spec.n_fft // 2 + 1
    frames = min(spec.window_frames, -(-(len(waveform) + half) // spec.hop_length))
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


class TranscriptEncoder:
    """Turns transcripts into a model's label tokens. Small, fast to pickle, and free of torch."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        """
        Args:
            tokenizer: adds the start, language, task and no-timestamps tokens before the text and end-of-text after it.
            max_tokens: most label tokens that the model takes, those special tokens included.
        """
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._special_tokens = len(tokenizer.encode("").ids)

    def encode(self, transcript: str) -> np.ndarray:
        """Labels of a transcript, int32 `[tokens]`, from `<|startoftranscript|>` to `<|endoftext|>`."""
        return np.array(self._tokenizer.encode(transcript).ids, dtype=np.int32)

    def is_too_long(self, transcript: str) -> bool:
        """Whether the transcript has more label tokens than the model takes.

        A byte-level tokenizer never makes more tokens than bytes, so most transcripts need not be encoded to know.
        """
        at_most = len(transcript.encode()) + self._special_tokens
        return at_most > self.max_tokens and len(self.encode(transcript)) > self.max_tokens

    @property
    def digest(self) -> str:
        """Identity of tokenizer, language and task: equal labels for every text have equal digests."""
        return hashlib.blake2b(self._tokenizer.to_str().encode(), digest_size=16).hexdigest()


def load_transcript_encoder(model: ModelConfig) -> TranscriptEncoder:
    """Loads a model's tokenizer, set to the configured language and task.

    Raises:
        ModelFilesError: there is no such model, or it has no Whisper tokenizer.
        UserError: Whisper does not know the language.
    """
    from transformers.models.whisper.tokenization_whisper import WhisperTokenizer
    from transformers.utils.hub import cached_file

    try:
        tokenizer = WhisperTokenizer.from_pretrained(model.model_name)
        config_path = cached_file(model.model_name, "config.json") or ""
        with open(config_path, encoding="utf-8") as file:
            model_config = json.load(file)
    except (OSError, ValueError) as error:
        raise _model_files_error(model.model_name, "a config.json and Whisper's tokenizer files", error) from error
    language = model.language or None
    try:
        tokenizer.set_prefix_tokens(language=language, task=model.task if language else None, predict_timestamps=False)
    except ValueError as error:
        raise UserError(f"model.language is {model.language!r}: {str(error).partition('. ')[2] or error}") from error
    if "max_target_positions" not in model_config:
        raise ModelFilesError(
            f"the config.json of {model.model_name!r} has no max_target_positions: not a Whisper model?"
        )
    # The model adds the start token by itself, so the labels that reach it are one shorter than ours.
    return TranscriptEncoder(tokenizer.backend_tokenizer, max_tokens=model_config["max_target_positions"] + 1)


def _model_files_error(model_name: str, needed: str, error: Exception) -> ModelFilesError:
    reason = " ".join(str(error).split())[:300]
    return ModelFilesError(
        f"cannot load model.model_name {model_name!r}: expected a folder or a Hub repository with {needed} ({reason})"
    )
