"""A manifest: the file that names the recordings and their transcripts, and its form as a memory-mapped table."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from config import HUB_MANIFEST, DataConfig, UserError
from remote_files import is_file, is_url, local_path, read_file, without_secrets

AUDIO_COLUMNS = ("audio", "file_name", "path")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
WILDCARDS = "*?["
ROWS_PER_TASK = 2048
"""Rows that one task of a scan judges."""


class ManifestError(UserError):
    """A manifest that can't be read, lacks a column, or holds too few usable recordings."""


@dataclass(frozen=True)
class Columns:
    """Which column of a manifest is what."""

    audio: str
    text: str
    duration: str | None
    id: str | None


@dataclass(frozen=True)
class ManifestRow:
    """A row of a manifest, nothing checked yet."""

    audio: str
    """A path or URL, or a locator of bytes in Parquet, relative to the manifest's folder or not; may be empty."""
    name: str
    """What reports call the audio."""
    text: Any
    duration: Any
    id: Any


@dataclass(frozen=True)
class TextManifest:
    """A manifest in CSV, TSV or JSON lines."""

    name: str
    """For messages."""
    root: str
    """Relative audio paths start at this folder or URL."""
    file: Path
    """The file, or a copy of what lies at a URL."""
    content: str
    """Identity of its content."""


@dataclass(frozen=True)
class TextTable:
    """A manifest as a memory-mapped Arrow table, and which of its columns is what."""

    arrow_files: tuple[str, ...]
    rows: int
    columns: Columns

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each enough for one task of a scan."""
        for start in range(0, self.rows, ROWS_PER_TASK):
            yield start, min(start + ROWS_PER_TASK, self.rows)

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows `start` to `stop` - 1. The memory map lives only as long as the call, and so do its pages."""
        import pyarrow

        audio, text, duration, row_id = (
            self.columns.audio, self.columns.text, self.columns.duration, self.columns.id
        )  # fmt: skip
        names = [name for name in (audio, text, duration, row_id) if name]
        for path in self.arrow_files:
            with pyarrow.memory_map(path) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
                piece = table.slice(max(0, start), max(0, stop - max(0, start))).select(names)
                for values in piece.to_pylist():
                    name = str(values[audio] or "")
                    yield ManifestRow(
                        audio=name,
                        name=without_secrets(name),
                        text=values[text],
                        duration=values[duration] if duration else None,
                        id=values[row_id] if row_id else None,
                    )
                start, stop = start - table.num_rows, stop - table.num_rows


def find_manifest(path: str) -> str:
    """The manifest that a path means: itself, or the metadata file of a folder. Looks at this machine's disks only.

    Raises:
        ManifestError: there is none.
    """
    path = local_path(path)
    if is_url(path):
        return path
    given = Path(path).expanduser()
    if given.is_dir():
        for name in FILE_NAMES:
            if (given / name).is_file():
                return str(given / name)
        if is_parquet(str(given)):
            return str(given)
        raise ManifestError(f"the folder {given} holds no {' or '.join(FILE_NAMES)} and no *.parquet")
    if not given.is_file() and not (any(sign in path for sign in WILDCARDS) and glob.glob(str(given), recursive=True)):
        raise ManifestError(f"no manifest at {given}: set --data.train_manifest (or --data.eval_manifest) to yours")
    if given.suffix.lower() not in (*ENDINGS, ".parquet"):
        raise ManifestError(
            f"{given} is no manifest: expected a .csv, .tsv or .jsonl file, or a folder with one, or .parquet files"
        )
    return str(given)


def is_parquet(manifest: str) -> bool:
    """Whether a manifest that was found is in Parquet, judged by its name, and for a folder by what is in it."""
    if HUB_MANIFEST.fullmatch(manifest) or manifest.endswith(".parquet"):
        return True
    return not is_url(manifest) and os.path.isdir(manifest) and any(Path(manifest).glob("*.parquet"))


def open_text_manifest(manifest: str, data: DataConfig) -> TextManifest:
    """Identifies the content of a manifest, and copies it here when it is at a URL.

    Args:
        manifest: what `find_manifest` gave, not in Parquet.
        data: the cache folder, and how long to ask a store that does not answer.

    Raises:
        ManifestError: there is none at this URL.
        SourceError: the URL can't be reached.
    """
    if not is_url(manifest):
        path = Path(manifest)
        return TextManifest(manifest, os.path.abspath(path.parent), path, digest_file(path))
    name = posixpath.basename(urlsplit(manifest).path)
    try:
        if not name.lower().endswith(ENDINGS):
            folder = manifest.rstrip("/")
            candidates = (f"{folder}/{name}" for name in FILE_NAMES)
            found = next((file for file in candidates if is_file(file, data.retry_timeout_s)), None)
            if not found:
                raise ManifestError(
                    f"{without_secrets(folder)} holds no {' or '.join(FILE_NAMES)}; Parquet there is named by a "
                    f"pattern: {without_secrets(folder)}/*.parquet"
                )
            return open_text_manifest(found, data)
        content = read_file(manifest, data.retry_timeout_s)
    except FileNotFoundError as error:
        raise ManifestError(
            f"no manifest at {error}: set --data.train_manifest (or --data.eval_manifest) to yours"
        ) from error
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    copy = Path(data.cache_dir) / "manifests" / digest / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(content)
    root = urlsplit(manifest)._replace(query="", fragment="").geturl().rpartition("/")[0]
    return TextManifest(without_secrets(manifest), root, copy, digest)


def digest_file(path: Path) -> str:
    """Identity of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def index_text_manifest(manifest: TextManifest, data: DataConfig) -> TextTable:
    """Loads a manifest into a memory-mapped table, once per content.

    CSV is read with every column as text, so that a transcript "1984" or "null" stays what it is. TSV is read without
    quoting, as Common Voice writes it.

    Raises:
        ManifestError: it can't be parsed, or a column is missing.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    options: dict[str, Any] = {}
    suffix = manifest.file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        delimiter = "\t" if suffix == ".tsv" else ","
        names = _csv_columns(manifest, delimiter)
        options = {
            "features": datasets.Features({name: datasets.Value("string") for name in names}),
            "sep": delimiter, "keep_default_na": False, "index_col": False, "encoding": "utf-8-sig",
            "quoting": csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        }  # fmt: skip
    try:
        table = datasets.load_dataset(
            "csv" if options else "json",
            data_files=str(manifest.file),
            split="train",
            cache_dir=str(Path(data.cache_dir) / "manifests" / manifest.content),
            **options,
        )
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ManifestError(f"cannot read {manifest.name}: {reason}") from error
    return TextTable(
        arrow_files=tuple(file["filename"] for file in table.cache_files),
        rows=len(table),
        columns=pick_columns(manifest.name, table.column_names, data),
    )


def _csv_columns(manifest: TextManifest, delimiter: str) -> list[str]:
    try:
        with manifest.file.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter)
            names, first = next(lines, []), next(lines, [])
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{manifest.name} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    if len(first) > len(names):  # pandas would take the surplus for an index and shift the columns
        raise ManifestError(f"cannot read {manifest.name}: expected {len(names)} fields in line 2, saw {len(first)}")
    if not first:
        raise ManifestError(f"{manifest.name} holds no rows")
    return names


def pick_columns(manifest: str, columns: Sequence[str], data: DataConfig) -> Columns:
    """Finds the columns that are configured, or else the usual ones.

    Raises:
        ManifestError: there is no such column.
    """
    return Columns(
        audio=_pick_column(manifest, columns, data.audio_column, AUDIO_COLUMNS, "audio"),
        text=_pick_column(manifest, columns, data.text_column, TEXT_COLUMNS, "text"),
        duration="duration" if "duration" in columns else None,
        id="id" if "id" in columns else None,
    )


def _pick_column(manifest: str, columns: Sequence[str], wanted: str, usual: tuple[str, ...], what: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in columns:
            return name
    expected = repr(wanted) if wanted else " or ".join(usual)
    raise ManifestError(
        f"{manifest} has no column {expected}: it has {', '.join(columns)}; name yours with --data.{what}_column"
    )
