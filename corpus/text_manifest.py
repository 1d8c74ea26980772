"""Manifests in CSV, TSV or JSON lines, as memory-mapped tables."""

from __future__ import annotations

import csv
import hashlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.errors import one_line
from common.files import digest_file
from common.redaction import without_secrets
from config import HUB_MANIFEST, DataConfig
from corpus.columns import Columns, pick_columns, read_row
from corpus.manifest import ROWS_PER_TASK, Format, ManifestError, ManifestRow
from storage.remote_files import is_file, is_url, read_file

FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
ENDINGS = (".csv", ".tsv", ".jsonl", ".json")


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

    def index(self, data: DataConfig) -> TextTable:
        """See `index_text_manifest`."""
        return index_text_manifest(self, data)


@dataclass(frozen=True)
class TextTable:
    """A manifest as a memory-mapped Arrow table, and which of its columns is what."""

    arrow_files: tuple[str, ...]
    rows: int
    columns: Columns
    data: DataConfig
    notes: tuple[str, ...] = ()
    blocks: None = None

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each enough for one task of a scan."""
        for start in range(0, self.rows, ROWS_PER_TASK):
            yield start, min(start + ROWS_PER_TASK, self.rows)

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows `start` to `stop` - 1. The memory map lives only as long as the call, and so do its pages."""
        import pyarrow

        for path in self.arrow_files:
            with pyarrow.memory_map(path) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
                piece = table.slice(max(0, start), max(0, stop - max(0, start)))
                for values in piece.to_pylist():
                    yield read_row(values, self.columns, self.data)
                start, stop = start - table.num_rows, stop - table.num_rows


def _recognises(path: str) -> bool:
    if is_url(path):
        return not path.endswith(".parquet") and not HUB_MANIFEST.fullmatch(path)
    if os.path.isdir(path):
        return any((Path(path) / name).is_file() for name in FILE_NAMES)
    return path.lower().endswith(ENDINGS)


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
        if path.is_dir():
            path = next(path / name for name in FILE_NAMES if (path / name).is_file())
            manifest = str(path)
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
        reason = one_line(error.__cause__ or error)
        raise ManifestError(f"cannot read {manifest.name}: {reason}") from error
    return TextTable(
        arrow_files=tuple(file["filename"] for file in table.cache_files),
        rows=len(table),
        columns=pick_columns(manifest.name, table.column_names, data),
        data=data,
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


TEXT = Format("text", "a .csv, .tsv or .jsonl file, or a folder with a metadata.csv", _recognises, open_text_manifest)
