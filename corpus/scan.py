"""The scan: worker processes judge slices of a manifest's table, once, and what they find is kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from tqdm import tqdm

from common.process_executor import ProcessExecutor
from common.progress_bar import progress_bar
from config import DataConfig
from corpus.manifest import ManifestError, find_manifest, is_parquet
from corpus.parquet_manifest import ParquetManifest, ParquetTable, index_parquet, open_parquet
from corpus.recording_checks import CheckedRows, Rules, check_rows
from corpus.recordings import Recordings
from corpus.rejected_report import check_rejected, write_report
from corpus.text_manifest import TextManifest, TextTable, digest_file, index_text_manifest, open_text_manifest
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from storage.remote_files import is_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCAN_VERSION = 2
"""Part of the cache key: raise it when the scan judges differently."""

HEARTBEAT_S = 1.0


def load_recordings(
    path: str, data: DataConfig, spec: FeatureSpec, encoder: TranscriptEncoder, *,
    report: Path, processes: int, heartbeat: Callable[[], None] = lambda: None,
) -> Recordings:  # fmt: skip
    """Scans a manifest, or finds the result of an earlier scan of the same content under the same rules.

    A row is refused when its file is missing, its header can't be read, its duration is out of range, or its transcript
    is empty or has more label tokens than the model takes. A row with a duration in the manifest is taken at its word;
    its file need only exist, and at a URL not even that is looked up.

    Args:
        path: manifest file, or a folder that holds one; or Parquet files; or a URL, see `DataConfig.train_manifest`.
        data: column names, limits and the cache folder.
        spec: the model's feature settings.
        encoder: counts label tokens.
        report: where to write the rejected rows.
        processes: processes that scan; 0: a thread of this process.
        heartbeat: called now and then during a long scan.

    Raises:
        ManifestError: the manifest can't be read or lacks a column.
        SourceError: a store of recordings can't be reached.
        TooManyRejectedError: too many of its rows can't be used.
    """
    found = find_manifest(path)
    cache = Path(data.cache_dir)
    try:
        if is_url(found):  # in another process: drivers take memory that this one would keep for days
            with _executor(min(1, processes)) as executor:
                manifest = _wait(executor.submit(open_manifest, found, data), heartbeat)
        else:
            manifest = open_manifest(found, data)
        root = manifest.root if is_url(manifest.root) else str(Path(manifest.root).resolve())
        rules = [SCAN_VERSION, manifest.content, root, asdict(spec), encoder.digest, encoder.max_tokens]
        rules += [data.audio_column, data.text_column, data.min_duration_s, data.max_duration_s]
        rules += [data.streaming] if isinstance(manifest, ParquetManifest) else []
        folder = cache / "scans" / hashlib.blake2b(json.dumps(rules).encode(), digest_size=12).hexdigest()
        if folder.exists():
            logger.info("scan of %s taken from %s; delete that folder to scan again", manifest.name, folder)
        else:
            _scan(manifest, folder, data, spec, encoder, report, processes, heartbeat)
        recordings = Recordings(folder, manifest.root)
        write_report(report, recordings.rejected_file)
    except OSError as error:
        raise ManifestError(f"cannot write {error.filename or cache}: {error.strerror or error}") from error
    logger.info(
        "%s: %d usable recordings, %.2f h, %d rejected (%s)",
        manifest.name, len(recordings), recordings.hours, recordings.rejected, report,
    )  # fmt: skip
    rows = len(recordings) + recordings.rejected
    check_rejected(recordings.rejected, rows, data.max_rejected_fraction, manifest.name, report)
    return recordings


def open_manifest(found: str, data: DataConfig) -> TextManifest | ParquetManifest:
    """Identifies the content of a manifest.

    Args:
        found: what `find_manifest` gave.
        data: the cache folder, and how long to ask a store that does not answer.
    """
    return open_parquet(found, data) if is_parquet(found) else open_text_manifest(found, data)


def index_manifest(manifest: TextManifest | ParquetManifest, data: DataConfig) -> TextTable | ParquetTable:
    """The rows of a manifest as a table that needs no memory."""
    if isinstance(manifest, ParquetManifest):
        return index_parquet(manifest, data)
    return index_text_manifest(manifest, data)


def _scan(
    manifest: TextManifest | ParquetManifest, folder: Path, data: DataConfig, spec: FeatureSpec,
    encoder: TranscriptEncoder, report: Path, processes: int, heartbeat: Callable[[], None],
) -> None:  # fmt: skip
    """Fills `folder`, all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, _executor(processes) as executor:
        unfinished = Path(temporary) / "scan"
        unfinished.mkdir()
        # In another process: importing datasets takes 140 MB that this one would keep for days.
        table = _wait(executor.submit(index_manifest, manifest, data), heartbeat)
        rules = Rules(table, manifest.root, spec, data, encoder)
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
            raise ManifestError(f"{manifest.name} holds no rows")
        if rejected_rows > data.max_rejected_fraction * table.rows or rejected_rows == table.rows:
            write_report(report, unfinished / "rejected.jsonl")
            check_rejected(rejected_rows, table.rows, data.max_rejected_fraction, manifest.name, report, reasons)
        np.save(unfinished / "offsets.npy", offsets)
        if isinstance(table, ParquetTable):
            np.save(unfinished / "blocks.npy", _count_blocks(table, unfinished / "rows.jsonl"))
        digest = hashlib.blake2b(
            (manifest.content + digest_file(unfinished / "rows.jsonl")).encode(), digest_size=16
        ).hexdigest()
        summary = {"digest": digest, "hours": seconds / 3600, "rejected": rejected_rows, "manifest": manifest.name}
        (unfinished / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # another process scanned the same and was faster
                raise


def _count_blocks(table: ParquetTable, rows: Path) -> np.ndarray:
    """int64 `[row groups, 2]`: usable recordings and bytes of each row group."""
    ends = np.cumsum(table.groups[:, 2])
    usable = np.zeros(len(ends), np.int64)
    with rows.open("rb") as lines:
        for line in lines:
            usable[np.searchsorted(ends, int(line[1 : line.index(b",")]), side="right")] += 1
    return np.stack([usable, table.groups[:, 3]], axis=1)


def _executor(processes: int) -> Executor:
    if processes:
        return ProcessExecutor(processes)
    return ThreadPoolExecutor(1)


def _wait(future: Future[T], heartbeat: Callable[[], None]) -> T:
    while True:
        try:
            return future.result(timeout=HEARTBEAT_S)
        except TimeoutError:
            if future.done():  # the task's own
                raise
            heartbeat()


def _collect(
    executor: Executor, rules: Rules, processes: int, rows: IO[bytes], rejected: IO[bytes], progress: tqdm,
    heartbeat: Callable[[], None],
) -> tuple[np.ndarray, Counter[str], float]:  # fmt: skip
    """Runs the scan's tasks, a few at a time, and writes their results in the manifest's order.

    Returns:
        int64 offsets of the lines in `rows` (one more than there are lines), rejected rows by kind of reason, and the
        known duration of the usable ones in seconds.
    """
    tasks = rules.table.tasks()
    pending: deque[Future[CheckedRows]] = deque()
    lengths, reasons, seconds = [np.zeros(1, np.int64)], Counter[str](), 0.0
    while True:
        while len(pending) < 2 * processes and (task := next(tasks, None)):
            pending.append(executor.submit(check_rows, rules, *task))
        if not pending:
            return np.cumsum(np.concatenate(lengths)), reasons, seconds
        checked = _wait(pending.popleft(), heartbeat)
        rows.write(checked.lines)
        rejected.writelines(rejection.to_json().encode() + b"\n" for rejection in checked.rejected)
        lengths.append(checked.line_lengths)
        reasons.update(rejection.reason.partition(":")[0] for rejection in checked.rejected)
        seconds += checked.seconds
        heartbeat()
        progress.update(len(checked.line_lengths) + len(checked.rejected))
