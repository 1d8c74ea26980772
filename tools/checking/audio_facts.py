"""What a check finds out about the audio of one recording: its header, a digest, and what decoding it shows.

Runs in worker processes. What the audio room says of a file is believed; nothing is judged a second time here.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from audio.audio_file import RecordingError, open_audio
from audio.waveform import CANCELLED as CANCELLED_CHANNELS
from audio.waveform import check_duration, load_waveform
from config import DataConfig
from corpus.recordings import Recording
from features.feature_spec import FeatureSpec
from storage.audio_sources import fetch_audio, fetch_header
from storage.remote_files import is_url
from storage.row_group_cache import parse_locator

CLIPPED, SILENT, CANCELLED = "clipped", "silent", "cancelled"
CEILING = 0.995
"""Samples of at least this share of a recording's peak lie at its ceiling."""
CLIPPED_SHARE = 5e-4
"""A recording with this share of its samples at the ceiling, three in a row or more, is clipped. Of 200 spoken digits
none has a single such row; of those made twice as loud as fits (6 dB), all but the softest."""
SILENT_PEAK = 1e-3
"""A recording is silent when its peak is below this share of full scale (-60 dB): `data.peak_normalize` makes noise at
full scale of it."""
DIGEST_BYTES = 8
FILES_KEPT = 64
"""Files whose facts are remembered: the next segments are likely to be of the same ones."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of an audio file without decoding it."""

    sampling_rate: int
    """In Hz."""
    channels: int
    duration_s: float
    digest: int
    """Of its bytes, 64 bits; 0: not looked at."""


@dataclass(frozen=True)
class AudioFacts:
    """What is known of a recording's audio."""

    file: FileFacts | None
    """None: it can't be read."""
    duration_s: float
    """Of the recording; NaN: it can't be read."""
    digest: int
    """Equal for equal audio, 64 bits; 0: not looked at."""
    decoded: bool = False
    """Whether it was decoded, or could not be."""
    findings: tuple[str, ...] = ()
    """`CLIPPED`, `SILENT`, `CANCELLED`."""
    failure: str = ""
    """Why it can't be used. Empty: it can, as far as was looked."""


class AudioInspector:
    """Looks at recordings' audio."""

    def __init__(self, spec: FeatureSpec, data: DataConfig, *, deep: bool) -> None:
        """
        Args:
            spec: the model's feature settings.
            data: how recordings are read.
            deep: whether files at URLs are fetched whole, and digests are those of the decoded audio.
        """
        self._spec, self._data, self._deep = spec, replace(data, peak_normalize=False), deep
        self._file_facts = functools.lru_cache(FILES_KEPT)(self._read_file)

    def inspect(self, recording: Recording, *, decode: bool) -> AudioFacts:
        """Reads the header of a recording's file, digests its bytes, and decodes it if asked to.

        Raises:
            SourceError: its store can't be reached.
        """
        try:
            file = self._file_facts(recording.audio)
        except RecordingError as error:
            return AudioFacts(None, float("nan"), 0, decoded=decode, failure=str(error))
        part = recording.part
        duration_s = file.duration_s - part.offset_s if part.duration_s is None else part.duration_s
        digest = digest_of(f"{file.digest}{part.suffix}".encode()) if file.digest and part.suffix else file.digest
        facts = AudioFacts(file, duration_s, digest)
        try:
            check_duration(duration_s, self._spec, self._data)  # where the manifest gives one, the scan believes that
        except RecordingError as error:
            return replace(facts, decoded=decode, failure=str(error))
        return self._decode(recording, file, facts) if decode else facts

    def _read_file(self, audio: str) -> FileFacts:
        try:
            if self._deep or not is_url(audio) or parse_locator(audio):
                source = fetch_audio(audio, self._data)
                return _header(source, _digest_source(source))
            start, is_whole = fetch_header(audio, self._data)
            try:
                return _header(start, _digest_source(start) if is_whole else 0)
            except RecordingError:
                if is_whole:
                    raise
            return _header(fetch_audio(audio, self._data), 0)
        except FileNotFoundError as error:
            raise RecordingError("file not found") from error
        except OSError as error:
            raise RecordingError(f"cannot be read: {error.strerror or error}") from error

    def _decode(self, recording: Recording, file: FileFacts, facts: AudioFacts) -> AudioFacts:
        spec = replace(self._spec, sampling_rate=file.sampling_rate)  # a resampler rounds off what was clipped
        counts: Counter[str] = Counter()
        try:
            waveform = load_waveform(recording.audio, spec, self._data, recording.part, counts=counts)
        except RecordingError as error:
            return replace(facts, decoded=True, failure=str(error))
        silent, findings = is_silent(waveform), []
        if counts[CANCELLED_CHANNELS]:
            findings.append(CANCELLED)
        if silent:
            findings.append(SILENT)
        if not silent and is_clipped(waveform):
            findings.append(CLIPPED)
        digest = digest_of(waveform.tobytes()) if self._deep else facts.digest
        return replace(facts, decoded=True, digest=digest, findings=tuple(findings))


def is_silent(waveform: np.ndarray) -> bool:
    """Whether there is nothing to hear in a waveform, float32 `[samples]` within ±1."""
    return not len(waveform) or float(np.abs(waveform).max()) < SILENT_PEAK


def is_clipped(waveform: np.ndarray) -> bool:
    """Whether loud parts were cut off at a ceiling, wherever that lies now.

    Args:
        waveform: float32 `[samples]`, not silent.
    """
    peak = float(np.abs(waveform).max())
    for side in (waveform, -waveform):
        ceiling = float(side.max())
        if ceiling < peak / 2:
            continue
        at_ceiling = side >= CEILING * ceiling
        in_a_row = at_ceiling[:-2] & at_ceiling[1:-1] & at_ceiling[2:]
        if int(in_a_row.sum()) >= CLIPPED_SHARE * len(waveform):
            return True
    return False


def _header(source: str | io.BytesIO, digest: int) -> FileFacts:
    with open_audio(source) as file:
        return FileFacts(file.sampling_rate, file.channels, file.count() / file.sampling_rate, digest)


def _digest_source(source: str | io.BytesIO) -> int:
    if isinstance(source, io.BytesIO):
        return digest_of(source.getbuffer())
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
    return int.from_bytes(digest, "big") or 1


def digest_of(content: bytes | memoryview) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), "big") or 1
