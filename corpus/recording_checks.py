"""What makes a row of a manifest usable. Runs in the processes of a scan."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from audio.audio_file import RecordingError, check_file
from audio.part import Part
from audio.waveform import check_duration, recording_duration_s
from config import DataConfig
from corpus.manifest import ManifestRow, Table
from corpus.missing_files import describe_missing
from corpus.recordings import encode_recording
from corpus.rejected_report import Rejection
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from storage.audio_sources import URLS_AT_ONCE, is_inside_file
from storage.remote_files import is_url, join

T = TypeVar("T")
V = TypeVar("V")

MAYBE_MILLISECONDS = 200.0
"""A stated duration above this may be in another unit."""


@dataclass(frozen=True)
class Rules:
    """What a row must satisfy. Picklable: the scan's workers get it."""

    root: str
    spec: FeatureSpec
    data: DataConfig
    encoder: TranscriptEncoder


@dataclass
class CheckedRows:
    """What a task of a scan found."""

    lines: list[bytes] = field(default_factory=list)
    """The usable rows, a JSON line each, see `encode_recording`."""
    rejected: list[Rejection] = field(default_factory=list)
    audio_faults: list[bytes] = field(default_factory=list)
    """Of the rejected rows those whose audio file can't be used, a JSON line each, see `_audio_fault`."""
    duration_s: float = 0.0
    """Of the usable rows together."""
    claimed_durations_s: list[float] = field(default_factory=list)
    """How long each usable row is by the manifest; NaN where it does not say, and for parts, whose length is checked
    anyway."""

    @property
    def line_lengths(self) -> np.ndarray:
        """int64, bytes of each of `lines`."""
        return np.array([len(line) for line in self.lines], np.int64)


def check_rows(table: Table, rules: Rules, start: int, stop: int) -> CheckedRows:
    """Judges rows `start` to `stop` - 1 of a manifest. Runs in a worker process."""
    found = CheckedRows()

    def judge(row: ManifestRow) -> float | RecordingError:
        try:
            part = _check_values(rules, row)
            return _check_audio(rules, row.audio, part, row.duration_s)
        except RecordingError as error:
            return error

    rows = table.read(start, stop)
    verdicts = _in_threads(judge, rows, lambda row: _is_at_url(rules, row.audio))
    for number, (row, verdict) in enumerate(verdicts, start):
        row_id = row.id or row.name
        if isinstance(verdict, float):
            found.duration_s += verdict
            found.lines.append(encode_recording(number, row_id, row))
            found.claimed_durations_s.append(_claimed_duration_s(row))
            continue
        found.rejected.append(Rejection(number, row_id, row.name, str(verdict)))
        if isinstance(verdict, AudioFileError) and not is_inside_file(row.audio):
            found.audio_faults.append(_audio_fault(row, str(verdict)))
    return found


def _claimed_duration_s(row: ManifestRow) -> float:
    is_part = isinstance(row.part, Part) and row.part.duration_s is not None
    return math.nan if row.duration_s is None or is_part else row.duration_s


def _audio_fault(row: ManifestRow, reason: str) -> bytes:
    """A line of `audio_faults.jsonl`: what a row says of its audio, and why that can't be used."""
    assert isinstance(row.part, Part)
    part = [row.part.offset_s, row.part.duration_s, row.part.channel]
    return json.dumps([row.audio, part, row.duration_s, reason]).encode() + b"\n"


def has_changed(rules: Rules, audio_faults: Sequence[bytes]) -> bool:
    """Whether audio files that an earlier scan refused are refused no longer, or for another reason. Runs in a worker.

    Args:
        rules: those of that scan.
        audio_faults: lines of its `audio_faults.jsonl`.
    """

    def judge(line: bytes) -> bool:
        audio, part, duration_s, reason = json.loads(line)
        try:
            _check_audio(rules, audio, Part(*part), duration_s)
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
    return (is_url(audio) or is_url(rules.root)) and is_url(join(rules.root, audio)) and not is_inside_file(audio)


def _check_values(rules: Rules, row: ManifestRow) -> Part:
    """Refuses a row for what it says.

    Returns:
        The part of the audio that it names.

    Raises:
        RecordingError: the reason.
    """
    if isinstance(row.transcript, RecordingError):
        raise row.transcript
    if not row.transcript:
        raise RecordingError("empty transcript")
    if not row.audio:
        raise RecordingError("no audio file named")
    if token := rules.encoder.special_token_in(row.transcript):
        raise RecordingError(f"transcript holds a special token of the model: {token}; take it out")
    if rules.encoder.is_too_long(row.transcript):
        tokens = len(rules.encoder.encode(row.transcript))
        raise RecordingError(f"transcript too long: {tokens} label tokens, the model takes {rules.encoder.max_tokens}")
    if isinstance(row.part, RecordingError):
        raise row.part
    if row.duration_s is not None:
        _check_stated_duration(rules, row.duration_s)
    return row.part


def _check_stated_duration(rules: Rules, duration_s: float) -> None:
    """Refuses a duration of the manifest's own, and says that it is."""
    try:
        check_duration(duration_s, rules.spec, rules.data)
    except RecordingError as error:
        hint = ""
        if duration_s > MAYBE_MILLISECONDS:
            hint = "; is it in milliseconds? A column duration is in seconds"
        raise RecordingError(f"{error}, by the manifest{hint}") from error


def _check_audio(rules: Rules, name: str, part: Part, duration_s: float | None) -> float:
    """Refuses an audio file that is missing, can't be read, or does not hold what the row names.

    Returns:
        The recording's duration in seconds.

    Raises:
        AudioFileError: the reason.
    """
    audio = join(rules.root, name)
    try:
        if duration_s is None:
            duration_s = recording_duration_s(audio, rules.data) - part.offset_s
            check_duration(duration_s, rules.spec, rules.data)
        elif not is_url(audio) and not is_inside_file(audio):
            check_file(audio)
        return duration_s
    except RecordingError as error:
        reason = str(error)
        if reason == "file not found" and not is_url(audio):
            reason += f": {describe_missing(rules.root, name)}"
        raise AudioFileError(reason) from error
