"""What makes a row of a manifest usable. Runs in the processes of a scan."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from audio.audio_file import RecordingError, check_file
from audio.part import WHOLE, Part
from audio.waveform import check_duration, recording_duration_s
from config import DataConfig
from corpus.manifest import ManifestRow, Table
from corpus.recordings import encode_recording
from corpus.rejected_report import Rejection
from features.feature_spec import FeatureSpec
from features.labels import LanguageError, TranscriptEncoder
from storage.audio_sources import URLS_AT_ONCE
from storage.remote_files import is_url, join
from storage.row_group_cache import parse_locator

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class Rules:
    """What a row must satisfy. Picklable: the scan's workers get it."""

    root: str
    spec: FeatureSpec
    data: DataConfig
    encoder: TranscriptEncoder


@dataclass(frozen=True)
class AudioToCheck:
    """What a row says of its audio."""

    audio: str
    """As in the manifest."""
    part: Part
    duration_s: float | None
    """Of the part; None: the manifest does not say."""

    def to_json(self, reason: str) -> bytes:
        """A line of `audio_faults.jsonl`: the audio, and why it can't be used."""
        part = [self.part.offset_s, self.part.duration_s, self.part.channel]
        return json.dumps([self.audio, part, self.duration_s, reason]).encode() + b"\n"


@dataclass
class CheckedRows:
    """What a task of a scan found."""

    lines: list[bytes] = field(default_factory=list)
    """The usable rows, a JSON line each, see `encode_recording`."""
    rejected: list[Rejection] = field(default_factory=list)
    audio_faults: list[bytes] = field(default_factory=list)
    """Of the rejected rows those whose audio file can't be used, a JSON line each, see `AudioToCheck.to_json`."""
    duration_s: float = 0.0
    """Of the usable rows together."""

    @property
    def line_lengths(self) -> np.ndarray:
        """int64, bytes of each of `lines`."""
        return np.array([len(line) for line in self.lines], np.int64)


def check_rows(table: Table, rules: Rules, start: int, stop: int) -> CheckedRows:
    """Judges rows `start` to `stop` - 1 of a manifest. Runs in a worker process."""
    found = CheckedRows()

    def judge(row: ManifestRow) -> float | RecordingError:
        try:
            _check_values(rules, row)
            return _check_audio(rules, _audio_of(row))
        except RecordingError as error:
            return error

    def is_at_url(row: ManifestRow) -> bool:
        return _is_at_url(rules, row.audio)

    rows = table.read(start, stop)
    for number, (row, verdict) in enumerate(_in_threads(judge, rows, is_at_url), start):
        row_id = row.id or row.name
        if isinstance(verdict, RecordingError):
            found.rejected.append(Rejection(number, row_id, row.name, str(verdict)))
            if isinstance(verdict, AudioFileError) and not parse_locator(row.audio):
                found.audio_faults.append(_audio_of(row).to_json(str(verdict)))
        else:
            found.duration_s += verdict
            found.lines.append(encode_recording(number, row_id, row))
    return found


def has_changed(rules: Rules, audio_faults: Sequence[bytes]) -> bool:
    """Whether audio files that an earlier scan refused are refused no longer, or for another reason. Runs in a worker.

    Args:
        rules: those of that scan.
        audio_faults: lines of its `audio_faults.jsonl`.
    """

    def judge(line: bytes) -> bool:
        audio, part, duration_s, reason = json.loads(line)
        try:
            _check_audio(rules, AudioToCheck(audio, Part(*part), duration_s))
        except RecordingError as error:
            return str(error) != reason
        return True

    def is_at_url(line: bytes) -> bool:
        return _is_at_url(rules, json.loads(line)[0])

    return any(changed for _, changed in _in_threads(judge, audio_faults, is_at_url))


class AudioFileError(RecordingError):
    """An audio file that can't be used. What is wrong lies outside of the manifest, and may be mended there."""


def _in_threads(judge: Callable[[T], V], rows: Iterable[T], is_at_url: Callable[[T], bool]) -> Iterator[tuple[T, V]]:
    """Each row with what `judge` says of it, in order; in threads where there are URLs to ask."""
    waiting: deque[tuple[T, Future[V]]] = deque()

    def next_answer() -> tuple[T, V]:
        row, future = waiting.popleft()
        return row, future.result()

    threads = ThreadPoolExecutor(URLS_AT_ONCE)  # it starts no thread before there is something to do
    try:
        for row in rows:
            if is_at_url(row):
                waiting.append((row, threads.submit(judge, row)))
                if len(waiting) >= 2 * URLS_AT_ONCE:
                    yield next_answer()
            else:
                while waiting:
                    yield next_answer()
                yield row, judge(row)
        while waiting:
            yield next_answer()
    finally:
        threads.shutdown(cancel_futures=True)


def _is_at_url(rules: Rules, audio: str) -> bool:
    audio = join(rules.root, audio)
    return is_url(audio) and not parse_locator(audio)


def _audio_of(row: ManifestRow) -> AudioToCheck:
    return AudioToCheck(row.audio, row.part if isinstance(row.part, Part) else WHOLE, row.duration_s)


def _check_values(rules: Rules, row: ManifestRow) -> None:
    """Refuses a row for what it says.

    Raises:
        RecordingError: the reason.
    """
    if isinstance(row.transcript, RecordingError):
        raise row.transcript
    if not row.transcript:
        raise RecordingError("empty transcript")
    if not row.audio:
        raise RecordingError("no audio file named")
    _check_labels(rules.encoder, row.transcript, row.language, row.task)
    if isinstance(row.part, RecordingError):
        raise row.part
    if row.duration_s is not None:
        check_duration(row.duration_s, rules.spec, rules.data)


def _check_labels(encoder: TranscriptEncoder, transcript: str, language: str, task: str) -> None:
    """Refuses labels that the model does not take."""
    try:
        if not encoder.is_too_long(transcript, language, task):
            return
        tokens = len(encoder.encode(transcript, language, task))
    except LanguageError as error:
        raise RecordingError(str(error)) from error
    raise RecordingError(f"transcript too long: {tokens} label tokens, the model takes {encoder.max_tokens}")


def _check_audio(rules: Rules, row: AudioToCheck) -> float:
    """Refuses an audio file that is missing, can't be read, or does not hold what the row names.

    Returns:
        The recording's duration in seconds.

    Raises:
        AudioFileError: the reason.
    """
    audio = join(rules.root, row.audio)
    try:
        if row.duration_s is not None:
            if not is_url(audio) and not parse_locator(audio):
                check_file(audio)
            return row.duration_s
        duration_s = recording_duration_s(audio, rules.data) - row.part.offset_s
        check_duration(duration_s, rules.spec, rules.data)
        return duration_s
    except RecordingError as error:
        raise AudioFileError(str(error)) from error
