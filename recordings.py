"""The usable recordings of a manifest: a parallel scan whose result is kept on disk.

A manifest of 693,000 rows takes no memory here: worker processes check slices of the memory-mapped table, and what
passed is read back a recording at a time, from a file of JSON lines with an index of offsets.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from audio_file import RecordingError, check_file, open_audio
from config import DataConfig
from data_processor import FeatureSpec, TranscriptEncoder, check_duration
from manifest import ManifestError, ManifestTable, digest_file, find_manifest, index_manifest
from process_executor import ProcessExecutor
from progress import progress_bar
from rejected_report import Rejection, check_rejected, write_report

logger = logging.getLogger(__name__)

ROWS_PER_TASK = 2048
SCAN_VERSION = 2
"""Part of the cache key: raise it when the scan judges differently."""


@dataclass(frozen=True)
class Recording:
    """A usable row of a manifest."""

    row: int
    """Its row in the manifest, from 0."""
    id: str
    audio: str
    """Path of the audio file."""
    transcript: str


class Recordings:
    """The usable recordings of a manifest, in its order, read from disk when asked for. Cheap to pickle."""

    def __init__(self, folder: Path, root: Path) -> None:
        """
        Args:
            folder: what a scan left in the cache.
            root: relative audio paths start here.
        """
        self._folder, self._root = folder, root
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._file = os.open(folder / "rows.jsonl", os.O_RDONLY)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.digest: str = summary["digest"]
        """Identity of the content of the manifest and of the choice of rows."""
        self.hours: float = summary["hours"]
        """Duration of all usable recordings together."""
        self.rejected: int = summary["rejected"]
        """Rows that can't be used."""
        self.rejected_file = folder / "rejected.jsonl"
        """Those rows, a JSON line for each."""

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Recording:
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        row, row_id, audio, transcript = json.loads(os.pread(self._file, end - begin, begin))
        return Recording(row, row_id, str(self._root / audio), transcript)

    def __reduce__(self) -> tuple[type[Recordings], tuple[Path, Path]]:
        return Recordings, (self._folder, self._root)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


@dataclass(frozen=True)
class Rules:
    """What a row must satisfy. Picklable: the scan's workers get it."""

    table: ManifestTable
    root: Path
    spec: FeatureSpec
    data: DataConfig
    encoder: TranscriptEncoder


def load_recordings(
    path: str, data: DataConfig, spec: FeatureSpec, encoder: TranscriptEncoder, *,
    report: Path, processes: int, heartbeat: Callable[[], None] = lambda: None,
) -> Recordings:  # fmt: skip
    """Scans a manifest, or finds the result of an earlier scan of the same content under the same rules.

    A row is refused when its file is missing, its header can't be read, its duration is out of range, or its transcript
    is empty or has more label tokens than the model takes. A row with a duration in the manifest is taken at its word;
    its file need only exist.

    Args:
        path: manifest file, or a folder that holds one.
        data: column names, limits and the cache folder.
        spec: the model's feature settings.
        encoder: counts label tokens.
        report: where to write the rejected rows.
        processes: processes that scan; 0: a thread of this process.
        heartbeat: called now and then during a long scan.

    Raises:
        ManifestError: the manifest can't be read or lacks a column.
        TooManyRejectedError: too many of its rows can't be used.
    """
    manifest = find_manifest(path)
    content = digest_file(manifest)
    rules = [SCAN_VERSION, content, str(manifest.parent.resolve()), asdict(spec), encoder.digest, encoder.max_tokens]
    rules += [data.audio_column, data.text_column, data.min_duration_s, data.max_duration_s]
    cache = Path(data.cache_dir)
    folder = cache / "scans" / hashlib.blake2b(json.dumps(rules).encode(), digest_size=12).hexdigest()
    try:
        if folder.exists():
            logger.info("scan of %s taken from %s; delete that folder to scan again", manifest, folder)
        else:
            _scan(manifest, content, folder, data, spec, encoder, report, processes, heartbeat)
        recordings = Recordings(folder, manifest.parent)
        write_report(report, recordings.rejected_file)
    except OSError as error:
        raise ManifestError(f"cannot write {error.filename or cache}: {error.strerror or error}") from error
    logger.info(
        "%s: %d usable recordings, %.2f h, %d rejected (%s)",
        manifest, len(recordings), recordings.hours, recordings.rejected, report,
    )  # fmt: skip
    rows = len(recordings) + recordings.rejected
    check_rejected(recordings.rejected, rows, data.max_rejected_fraction, str(manifest), report)
    return recordings


def _scan(
    manifest: Path, content: str, folder: Path, data: DataConfig, spec: FeatureSpec, encoder: TranscriptEncoder,
    report: Path, processes: int, heartbeat: Callable[[], None],
) -> None:  # fmt: skip
    """Fills `folder`, all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, _executor(processes) as executor:
        unfinished = Path(temporary) / "scan"
        unfinished.mkdir()
        # In another process: importing datasets takes 140 MB that this one would keep for days.
        table = executor.submit(index_manifest, manifest, content, data).result()
        rules = Rules(table, manifest.parent, spec, data, encoder)
        with (
            open(unfinished / "rows.jsonl", "wb") as rows,
            open(unfinished / "rejected.jsonl", "wb") as rejected,
            progress_bar(table.rows, "row", "scan") as progress,
        ):
            offsets, reasons, seconds = _collect(
                executor, rules, max(1, processes), rows, rejected, progress, heartbeat
            )
        rejected_rows = sum(reasons.values())
        if not table.rows:
            raise ManifestError(f"{manifest} holds no rows")
        if rejected_rows > data.max_rejected_fraction * table.rows or rejected_rows == table.rows:
            write_report(report, unfinished / "rejected.jsonl")
            check_rejected(rejected_rows, table.rows, data.max_rejected_fraction, str(manifest), report, reasons)
        np.save(unfinished / "offsets.npy", offsets)
        digest = hashlib.blake2b(
            (content + digest_file(unfinished / "rows.jsonl")).encode(), digest_size=16
        ).hexdigest()
        summary = {"digest": digest, "hours": seconds / 3600, "rejected": rejected_rows, "manifest": str(manifest)}
        (unfinished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # another process scanned the same and was faster
                raise


def _executor(processes: int) -> Executor:
    if processes:
        return ProcessExecutor(processes)
    return ThreadPoolExecutor(1)


def _collect(
    executor: Executor, rules: Rules, processes: int, rows: IO[bytes], rejected: IO[bytes], progress: tqdm,
    heartbeat: Callable[[], None],
) -> tuple[np.ndarray, Counter[str], float]:  # fmt: skip
    """Runs the scan's tasks, a few at a time, and writes their results in the manifest's order.

    Returns:
        int64 offsets of the lines in `rows` (one more than there are lines), rejected rows by kind of reason, and the
        known duration of the usable ones in seconds.
    """
    starts = iter(range(0, rules.table.rows, ROWS_PER_TASK))
    pending: deque[Future[CheckedRows]] = deque()
    lengths, reasons, seconds = [np.zeros(1, np.int64)], Counter[str](), 0.0
    while True:
        while len(pending) < 2 * processes and (start := next(starts, None)) is not None:
            pending.append(executor.submit(check_rows, rules, start, min(start + ROWS_PER_TASK, rules.table.rows)))
        if not pending:
            return np.cumsum(np.concatenate(lengths)), reasons, seconds
        checked = pending.popleft().result()
        rows.write(checked.lines)
        rejected.writelines(rejection.to_json().encode() + b"\n" for rejection in checked.rejected)
        lengths.append(checked.line_lengths)
        reasons.update(rejection.reason.partition(":")[0] for rejection in checked.rejected)
        seconds += checked.seconds
        heartbeat()
        progress.update(len(checked.line_lengths) + len(checked.rejected))


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
    table, lines, rejected, seconds = rules.table, [], [], 0.0
    for row, values in enumerate(table.read(start, stop), start):
        audio, transcript = str(values[table.audio] or ""), str(values[table.text] or "").strip()
        row_id = str(values[table.id]) if table.id else audio
        try:
            seconds += _check_row(rules, audio, transcript, values[table.duration] if table.duration else None)
        except RecordingError as error:
            rejected.append(Rejection(row, row_id, audio, str(error)))
        else:
            lines.append(json.dumps([row, row_id, audio, transcript], ensure_ascii=False).encode() + b"\n")
    return CheckedRows(b"".join(lines), np.array([len(line) for line in lines], np.int64), rejected, seconds)


def _check_row(rules: Rules, audio: str, transcript: str, duration: object) -> float:
    """Returns the recording's duration in seconds.

    Raises:
        RecordingError: the row can't be used.
    """
    if not transcript:
        raise RecordingError("empty transcript")
    if not audio:
        raise RecordingError("no audio file named")
    if rules.encoder.is_too_long(transcript):
        tokens = len(rules.encoder.encode(transcript))
        raise RecordingError(f"transcript too long: {tokens} label tokens, the model takes {rules.encoder.max_tokens}")
    path = rules.root / audio
    duration_s = _parse_duration(duration)
    if duration_s is None:
        with open_audio(path) as file:
            duration_s = file.frames / file.samplerate
    else:
        check_file(path)
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
