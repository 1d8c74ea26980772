"""A manifest: the file that names the recordings and their transcripts, and its form as a memory-mapped table."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import DataConfig, UserError

AUDIO_COLUMNS = ("audio", "file_name", "path")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")


class ManifestError(UserError):
    """A manifest that can't be read, lacks a column, or holds too few usable recordings."""


@dataclass(frozen=True)
class ManifestTable:
    """A manifest as a memory-mapped Arrow table, and which of its columns is what."""

    arrow_files: tuple[str, ...]
    rows: int
    audio: str
    text: str
    duration: str | None
    id: str | None

    def read(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Rows `start` to `stop` - 1. The memory map lives only as long as the call, and so do its pages."""
        import pyarrow

        for path in self.arrow_files:
            with pyarrow.memory_map(path) as source:
                table = pyarrow.ipc.open_stream(source).read_all()
                names = [name for name in (self.audio, self.text, self.duration, self.id) if name]
                yield from table.slice(max(0, start), max(0, stop - max(0, start))).select(names).to_pylist()
                start, stop = start - table.num_rows, stop - table.num_rows


def find_manifest(path: str) -> Path:
    """The manifest file that a path means: itself, or the metadata file of a folder.

    Raises:
        ManifestError: there is none.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        for name in FILE_NAMES:
            if (given / name).is_file():
                return given / name
        raise ManifestError(f"the folder {given} holds no {' or '.join(FILE_NAMES)}")
    if not given.is_file():
        raise ManifestError(f"no manifest at {given}: set --data.train_manifest (or --data.eval_manifest) to yours")
    if given.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".json"):
        raise ManifestError(f"{given} is no manifest: expected a .csv, .tsv or .jsonl file, or a folder with one")
    return given


def digest_file(path: Path) -> str:
    """Identity of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def index_manifest(manifest: Path, content: str, data: DataConfig) -> ManifestTable:
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
    if manifest.suffix.lower() in (".csv", ".tsv"):
        delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
        names = _csv_columns(manifest, delimiter)
        options = {
            "features": datasets.Features({name: datasets.Value("string") for name in names}),
            "sep": delimiter, "keep_default_na": False, "index_col": False, "encoding": "utf-8-sig",
            "quoting": csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        }  # fmt: skip
    try:
        table = datasets.load_dataset(
            "csv" if options else "json",
            data_files=str(manifest),
            split="train",
            cache_dir=str(Path(data.cache_dir) / "manifests" / content),
            **options,
        )
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ManifestError(f"cannot read {manifest}: {reason}") from error
    columns = table.column_names
    return ManifestTable(
        arrow_files=tuple(file["filename"] for file in table.cache_files),
        rows=len(table),
        audio=_pick_column(manifest, columns, data.audio_column, AUDIO_COLUMNS, "audio"),
        text=_pick_column(manifest, columns, data.text_column, TEXT_COLUMNS, "text"),
        duration="duration" if "duration" in columns else None,
        id="id" if "id" in columns else None,
    )


def _csv_columns(manifest: Path, delimiter: str) -> list[str]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter)
            names, first = next(lines, []), next(lines, [])
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{manifest} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    if len(first) > len(names):  # pandas would take the surplus for an index and shift the columns
        raise ManifestError(f"cannot read {manifest}: expected {len(names)} fields in line 2, saw {len(first)}")
    if not first:
        raise ManifestError(f"{manifest} holds no rows")
    return names


def _pick_column(manifest: Path, columns: list[str], wanted: str, usual: tuple[str, ...], what: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in columns:
            return name
    expected = repr(wanted) if wanted else " or ".join(usual)
    raise ManifestError(
        f"{manifest} has no column {expected}: it has {', '.join(columns)}; name yours with --data.{what}_column"
    )
