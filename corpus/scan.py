"""The scan: worker processes judge slices of a corpus' table, once, and what they find is kept on disk."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import logging
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from common.files import cannot_write, digest_file
from common.process_executor import ProcessExecutor
from common.progress_bar import progress_bar
from config import DataConfig
from corpus.formats import open_corpus
from corpus.manifest import ROWS_PER_TASK, Corpus, ManifestError, Table
from corpus.recording_checks import CheckedRows, Rules, check_rows, has_changed
from corpus.recordings import Recordings
from corpus.rejected_report import check_rejected, write_report
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from storage.remote_files import is_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCAN_VERSION = 3
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
    scanner = _Scanner(data, spec, encoder, report, processes, heartbeat)
    try:
        with ProcessExecutor(processes) if processes else ThreadPoolExecutor(1) as executor:
            corpus = scanner.wait(executor.submit(open_corpus, path, data))
            recordings = scanner.find(executor, corpus) or scanner.scan(executor, corpus)
        write_report(report, recordings.rejected_file)
    except OSError as error:
        remedy = "make room, or choose another --data.cache_dir"
        raise cannot_write(ManifestError, data.cache_dir, error, remedy) from error
    logger.info(
        "%s: %d usable recordings, %.2f h, %d rejected (%s)",
        corpus.name, len(recordings), recordings.hours, recordings.rejected, report,
    )  # fmt: skip
    rows = len(recordings) + recordings.rejected
    check_rejected(recordings.rejected, rows, data.max_rejected_fraction, corpus.name, report)
    return recordings


@dataclass(frozen=True)
class _Scanner:
    """Scans a corpus with an executor, or finds the result of an earlier scan."""

    data: DataConfig
    spec: FeatureSpec
    encoder: TranscriptEncoder
    report: Path
    processes: int
    heartbeat: Callable[[], None]

    def wait(self, future: Future[T]) -> T:
        """The result of a task."""
        while not concurrent.futures.wait([future], timeout=HEARTBEAT_S).done:
            self.heartbeat()
        return future.result()

    def _folder(self, corpus: Corpus) -> Path:
        """Where the result of a scan of this content under these rules is kept."""
        data = self.data
        root = corpus.root if is_url(corpus.root) else str(Path(corpus.root).resolve())
        rules = [SCAN_VERSION, corpus.content, root, asdict(self.spec), self.encoder.digest, self.encoder.max_tokens]
        rules += [data.audio_column, data.text_column, data.min_duration_s, data.max_duration_s, data.streaming]
        rules += [data.channel]
        return Path(data.cache_dir) / "scans" / hashlib.blake2b(json.dumps(rules).encode(), digest_size=12).hexdigest()

    def _rules(self, corpus: Corpus) -> Rules:
        return Rules(corpus.root, self.spec, self.data, self.encoder)

    def find(self, executor: Executor, corpus: Corpus) -> Recordings | None:
        """What an earlier scan has found, unless audio files that it refused have changed since."""
        folder = self._folder(corpus)
        if not folder.exists():
            return None
        with (folder / "audio_faults.jsonl").open("rb") as faults:
            changed = self._in_turn(executor, _slices(faults), has_changed, self._rules(corpus))
            if any(changed):
                logger.info("%s: rejected audio files have changed, scanning again", corpus.name)
                return None
        logger.info("scan of %s taken from %s; delete that folder to scan again", corpus.name, folder)
        return Recordings(folder, corpus.root)

    def scan(self, executor: Executor, corpus: Corpus) -> Recordings:
        """Judges all rows, and keeps the result on disk, all or nothing."""
        folder = self._folder(corpus)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            unfinished = Path(temporary) / "scan"
            unfinished.mkdir()
            # Not here: parsing libraries take memory that this process would keep for days.
            table = self.wait(executor.submit(_index, corpus, self.data))
            for note in table.notes:
                logger.info("%s: %s", corpus.name, note)
            if not table.rows:
                raise ManifestError(f"{corpus.name} holds no rows")
            found = self._judge(executor, corpus, table, unfinished)
            self._check_limit(corpus, table, found, unfinished)
            _write_summary(corpus, table, found, unfinished)
            _replace(folder, unfinished, Path(temporary))
        return Recordings(folder, corpus.root)

    def _judge(self, executor: Executor, corpus: Corpus, table: Table, folder: Path) -> _Found:
        """Runs the scan's tasks and writes what they find, in the manifest's order."""
        found = _Found()
        checked_rows = self._in_turn(
            executor, ((*task,) for task in table.tasks()), check_rows, table, self._rules(corpus)
        )
        with (
            open(folder / "rows.jsonl", "wb") as rows,
            open(folder / "rejected.jsonl", "wb") as rejected,
            open(folder / "audio_faults.jsonl", "wb") as audio_faults,
            progress_bar(table.rows, "row", "scan") as progress,
        ):
            for checked in checked_rows:
                rows.writelines(checked.lines)
                rejected.writelines(rejection.to_json().encode() + b"\n" for rejection in checked.rejected)
                audio_faults.writelines(checked.audio_faults)
                found.add(checked)
                progress.update(len(checked.lines) + len(checked.rejected))
        return found

    def _in_turn(
        self, executor: Executor, tasks: Iterator[tuple[Any, ...]], function: Callable[..., T], *first: Any
    ) -> Iterator[T]:
        """Results of `function(*first, *task)` for each task, in order; a few tasks at a time are under way."""
        pending: deque[Future[T]] = deque()
        for task in tasks:
            pending.append(executor.submit(function, *first, *task))
            if len(pending) >= 2 * max(1, self.processes):
                yield self.wait(pending.popleft())
                self.heartbeat()
        while pending:
            yield self.wait(pending.popleft())

    def _check_limit(self, corpus: Corpus, table: Table, found: _Found, folder: Path) -> None:
        rejected, allowed = sum(found.reasons.values()), self.data.max_rejected_fraction
        if rejected > allowed * table.rows or rejected == table.rows:
            write_report(self.report, folder / "rejected.jsonl")
            check_rejected(rejected, table.rows, allowed, corpus.name, self.report, found.reasons)


@dataclass
class _Found:
    """What the tasks of a scan have found together."""

    line_lengths: list[np.ndarray] = field(default_factory=lambda: [np.zeros(1, np.int64)])
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected rows by kind of reason."""
    duration_s: float = 0.0
    claimed_durations_s: list[np.ndarray] = field(default_factory=list)
    """float32 of each task, see `CheckedRows`."""

    def add(self, checked: CheckedRows) -> None:
        """Counts what one task has found."""
        self.line_lengths.append(checked.line_lengths)
        self.reasons.update(rejection.reason.partition(":")[0] for rejection in checked.rejected)
        self.duration_s += checked.duration_s
        self.claimed_durations_s.append(np.array(checked.claimed_durations_s, np.float32))

    @property
    def offsets(self) -> np.ndarray:
        """int64, where each line of rows.jsonl begins, and the end of the last."""
        return np.cumsum(np.concatenate(self.line_lengths))


def _index(corpus: Corpus, data: DataConfig) -> Table:
    """Runs in a worker process."""
    try:
        return corpus.index(data)
    except OSError as error:
        raise ManifestError(f"cannot read {error.filename or corpus.name}: {error.strerror or error}") from error


def _slices(lines: IO[bytes]) -> Iterator[tuple[list[bytes]]]:
    while some := list(itertools.islice(lines, ROWS_PER_TASK)):
        yield (some,)


def _write_summary(corpus: Corpus, table: Table, found: _Found, folder: Path) -> None:
    """Writes what `Recordings` reads besides the rows themselves."""
    np.save(folder / "offsets.npy", found.offsets)
    claimed_durations_s = np.concatenate(found.claimed_durations_s)
    if not np.isnan(claimed_durations_s).all():
        claimed_durations_s.tofile(folder / "claimed_durations.f32")
    if table.blocks is not None:
        np.save(folder / "blocks.npy", _count_blocks(table.blocks, folder / "rows.jsonl"))
    identity = corpus.content + digest_file(folder / "rows.jsonl")
    summary = {
        "digest": hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
        "hours": found.duration_s / 3600,
        "rejected": sum(found.reasons.values()),
        "manifest": corpus.name,
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _count_blocks(blocks: np.ndarray, rows: Path) -> np.ndarray:
    """int64 `[blocks, 2]`: usable recordings and bytes of each block."""
    ends = np.cumsum(blocks[:, 0])
    usable = np.zeros(len(ends), np.int64)
    with rows.open("rb") as lines:
        for line in lines:
            usable[np.searchsorted(ends, int(line[1 : line.index(b",")]), side="right")] += 1
    return np.stack([usable, blocks[:, 1]], axis=1)


def _replace(folder: Path, finished: Path, temporary: Path) -> None:
    """Puts a finished scan where it belongs; an earlier one goes to a folder that is deleted."""
    if folder.exists():
        folder.rename(temporary / "earlier")
    try:
        finished.rename(folder)
    except OSError:
        if not folder.exists():  # another process scanned the same and was faster
            raise
