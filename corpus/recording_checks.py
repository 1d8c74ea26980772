"""What makes a row of a manifest usable. Runs in the processes of a scan."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from audio.audio_file import RecordingError, check_file
from audio.waveform import check_duration, recording_duration_s
from config import DataConfig
from corpus.manifest import ManifestRow
from corpus.parquet_manifest import ParquetTable
from corpus.rejected_report import Rejection
from corpus.text_manifest import TextTable
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from storage.audio_sources import URLS_AT_ONCE
from storage.remote_files import is_url, join
from storage.row_group_cache import parse_locator


@dataclass(frozen=True)
class Rules:
    """What a row must satisfy. Picklable: the scan's workers get it."""

    table: TextTable | ParquetTable
    root: str
    spec: FeatureSpec
    data: DataConfig
    encoder: TranscriptEncoder


@dataclass(frozen=True)
class CheckedRows:
    """What a scan's task found."""

    lines: bytes
    """JSON lines of the usable rows: row, id, audio path as in the manifest, transcript."""
    line_lengths: np.ndarray
    """int64, bytes of each line."""
    rejected: list[Rejection]
    seconds: float
    """Duration of the usable rows together."""


def check_rows(rules: Rules, start: int, stop: int) -> CheckedRows:
    """Judges rows `start` to `stop` - 1 of a manifest. Runs in a worker process."""
    lines, rejected, seconds = [], [], 0.0
    for row, (values, verdict) in enumerate(_judge(rules, rules.table.read(start, stop)), start):
        row_id = values.name if values.id is None else str(values.id)
        if isinstance(verdict, RecordingError):
            rejected.append(Rejection(row, row_id, values.name, str(verdict)))
        else:
            seconds += verdict
            line = json.dumps([row, row_id, values.audio, _transcript(values)], ensure_ascii=False)
            lines.append(line.encode() + b"\n")
    return CheckedRows(b"".join(lines), np.array([len(line) for line in lines], np.int64), rejected, seconds)


def _judge(rules: Rules, rows: Iterator[ManifestRow]) -> Iterator[tuple[ManifestRow, float | RecordingError]]:
    """Each row with its duration in seconds, or with why it can't be used; in threads when there are URLs to ask."""

    def judge(row: ManifestRow) -> tuple[ManifestRow, float | RecordingError]:
        try:
            return row, _check_row(rules, row)
        except RecordingError as error:
            return row, error

    waiting: deque[Future[tuple[ManifestRow, float | RecordingError]]] = deque()
    threads = ThreadPoolExecutor(URLS_AT_ONCE)  # it starts no thread before there is something to do
    try:
        for row in rows:
            audio = join(rules.root, row.audio)
            if is_url(audio) and not parse_locator(audio):
                waiting.append(threads.submit(judge, row))
                if len(waiting) >= 2 * URLS_AT_ONCE:
                    yield waiting.popleft().result()
            else:
                while waiting:
                    yield waiting.popleft().result()
                yield judge(row)
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _transcript(row: ManifestRow) -> str:
    return str(row.text or "").strip()


def _check_row(rules: Rules, row: ManifestRow) -> float:
    """Returns the recording's duration in seconds.

    Raises:
        RecordingError: the row can't be used.
    """
    transcript = _transcript(row)
    if not transcript:
        raise RecordingError("empty transcript")
    if not row.audio:
        raise RecordingError("no audio file named")
    if rules.encoder.is_too_long(transcript):
        tokens = len(rules.encoder.encode(transcript))
        raise RecordingError(f"transcript too long: {tokens} label tokens, the model takes {rules.encoder.max_tokens}")
    audio = join(rules.root, row.audio)
    duration_s = _parse_duration(row.duration)
    if duration_s is None:
        duration_s = recording_duration_s(audio, rules.data)
    elif not is_url(audio) and not parse_locator(audio):
        check_file(audio)
    check_duration(duration_s, rules.spec, rules.data)
    return duration_s


def _parse_duration(value: object) -> float | None:
    """Seconds, or None when the manifest does not say."""
    if value is None or value == "":
        return None
    try:
        duration_s = float(str(value))
    except ValueError as error:
        raise RecordingError(f"duration {value!r} is not a number of seconds") from error
    if not math.isfinite(duration_s):
        raise RecordingError(f"duration {value!r} is not a number of seconds")
    return duration_s
