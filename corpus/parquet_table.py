"""The rows of a data set in Parquet, a row group at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.redaction import without_secrets
from config import GIB, DataConfig
from corpus.columns import OPTIONAL_COLUMNS, Columns, pick_columns, read_row
from corpus.manifest import ROWS_PER_TASK, ManifestError, ManifestRow
from storage.remote_files import join, open_file
from storage.row_group_cache import BLOCK_BYTES, RowPlace, read_metadata, reading, unpack, unpacked_path


@dataclass(frozen=True)
class ParquetManifest:
    """Parquet files with one schema, as one data set."""

    name: str
    """For messages."""
    root: str
    """Folder or URL that all files lie below."""
    files: tuple[str, ...]
    """Relative to the root."""
    digests: tuple[str, ...]
    """Identity of each file's content."""

    @property
    def content(self) -> str:
        """Identity of all of it."""
        return hashlib.blake2b("\n".join((*self.files, *self.digests)).encode(), digest_size=16).hexdigest()

    def index(self, data: DataConfig) -> ParquetTable:
        """Reads the footers of all files: their columns and row groups.

        Raises:
            ManifestError: a column is missing or of the wrong type, the files differ, or the disk is too small.
        """
        groups: list[tuple[int, int, int, int]] = []
        table = None
        for number, (name, digest) in enumerate(zip(self.files, self.digests, strict=True)):
            file = join(self.root, name)
            metadata = reading(file, data, partial(read_metadata, file, digest))
            names = _pick(without_secrets(file), metadata.schema.to_arrow_schema(), data)
            if table is None:
                table = ParquetTable(self, data, np.zeros((0, 4), np.int64), names)
            elif names != table.names:
                raise ManifestError(f"{without_secrets(file)} has other columns than {self.files[0]}")
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                groups.append((number, group, rows, _audio_bytes(metadata.row_group(group), names.audio_bytes)))
        assert table is not None
        table = replace(table, groups=np.array(groups, np.int64).reshape(-1, 4))
        table.check_space()
        return table


@dataclass(frozen=True)
class ParquetColumns:
    """Which columns of a Parquet file are what."""

    columns: Columns
    audio_bytes: str
    """Column of the audio's bytes, a field of a struct or not. Empty: there are paths only."""
    audio_path: str
    """Column of the audio's path or name, a field of a struct or not. Empty: there is none."""
    optional: tuple[str, ...]
    """Those of `OPTIONAL_COLUMNS` that are there."""


@dataclass(frozen=True)
class ParquetTable:
    """The rows of a Parquet data set, and which of its columns is what. Cheap to pickle."""

    manifest: ParquetManifest
    data: DataConfig
    groups: np.ndarray
    """int64 `[row groups, 4]`: file, number in the file, rows, bytes of audio (0: it holds paths only)."""
    names: ParquetColumns
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return int(self.groups[:, 2].sum())

    @property
    def blocks(self) -> np.ndarray:
        """int64 `[row groups, 2]`: rows and bytes of audio of each."""
        return self.groups[:, 2:]

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, whole row groups, each enough for one task of a scan."""
        start = stop = 0
        for rows in self.groups[:, 2].tolist():
            stop += rows
            if stop - start >= ROWS_PER_TASK:
                yield start, stop
                start = stop
        if stop > start:
            yield start, stop

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows `start` to `stop` - 1, as `tasks` gave them.

        Unless the data set is streamed, all audio of these rows is unpacked into the cache.
        """
        ends = np.cumsum(self.groups[:, 2])
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        for file, group, rows, audio_bytes in self.groups[first : last + 1].tolist():
            yield from self._read_group(file, group, start, bool(audio_bytes))
            start += rows

    def _read_group(self, file: int, group: int, first_row: int, has_bytes: bool) -> Iterator[ManifestRow]:
        name, digest = self.manifest.files[file], self.manifest.digests[file]
        place = RowPlace(join(self.manifest.root, name), self.names.audio_bytes, group, 0, digest)
        if has_bytes and not self.data.streaming:
            unpack(place, self.data)
        index = 0
        for batch in reading(place.file, self.data, lambda: self._read_values(place)):
            for values in batch.to_pylist():
                path = _value(values, self.names.audio_path)
                if has_bytes:
                    audio = replace(place, file=name, index=index).locator
                    called = path or f"{name}#{first_row + index}"
                    yield read_row(values, self.names.columns, self.data, audio, called)
                else:
                    row = read_row({**values, self.names.columns.audio: path}, self.names.columns, self.data)
                    yield row if path else replace(row, name=f"{name}#{first_row + index}")
                index += 1

    def _read_values(self, place: RowPlace) -> list[Any]:
        """Record batches of a row group, all columns that are read but the audio's bytes."""
        import pyarrow.parquet

        columns = [name for name in (self.names.audio_path, self.names.columns.text, *self.names.optional) if name]
        with open_file(place.file, BLOCK_BYTES) as source:
            metadata = read_metadata(place.file, place.digest)
            parquet = pyarrow.parquet.ParquetFile(source, metadata=metadata, buffer_size=BLOCK_BYTES, pre_buffer=False)
            return list(parquet.iter_batches(batch_size=ROWS_PER_TASK, row_groups=[place.group], columns=columns))

    def check_space(self) -> None:
        """Refuses a data set whose audio will not fit where it is to be unpacked, before hours of unpacking.

        Raises:
            ManifestError: it won't fit, and what would.
        """
        data, sizes = self.data, self.groups[:, 3]
        folder = Path(data.cache_dir)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if data.streaming:
            self._check_window()
            needed = min(data.streaming_cache_bytes, int(sizes.sum()))
            remedy = "lower --data.streaming_cache_gb"
        else:
            needed, remedy = self._bytes_to_unpack(), "read it through a window with --data.streaming True"
        if needed > free:
            raise ManifestError(
                f"the audio of {self.manifest.name} takes {needed / GIB:.2f} GB in {folder.absolute()}, whose disk has "
                f"{free / GIB:.2f} GB free: choose another --data.cache_dir, or {remedy}"
            )

    def _check_window(self) -> None:
        """Each process of a scan works on a row group of its own, and the next one may be unpacked meanwhile."""
        data, largest = self.data, int(self.groups[:, 3].max(initial=0))
        groups = max(4, 2 * (data.num_workers or os.cpu_count() or 1))
        if groups * largest > data.streaming_cache_bytes:
            raise ManifestError(
                f"a row group of {self.manifest.name} has {largest / GIB:.2f} GB of audio, and "
                f"data.streaming_cache_gb ({data.streaming_cache_gb:g}) must hold {groups} of them: set it to "
                f"{1.01 * groups * largest / GIB:.2f}, or write the data set with smaller row groups"
            )

    def _bytes_to_unpack(self) -> int:
        needed = 0
        for file, group, rows, size in self.groups.tolist():
            place = RowPlace("", self.names.audio_bytes, group, 0, self.manifest.digests[file])
            if not unpacked_path(place, self.data).exists():
                needed += size + 8 * (rows + 1)
        return needed


def _value(values: dict[str, Any], column: str) -> str:
    value: Any = values
    for part in column.split(".") if column else []:
        value = value[part] if value else None
    return value if isinstance(value, str) else ""


def _audio_bytes(group: Any, column: str) -> int:
    """Bytes of audio in a row group; 0 when all of them are null."""
    for number in range(group.num_columns if column else 0):
        chunk = group.column(number)
        if chunk.path_in_schema == column:
            statistics = chunk.statistics
            is_empty = statistics is not None and statistics.has_null_count and statistics.null_count == group.num_rows
            return 0 if is_empty else max(1, chunk.total_uncompressed_size)
    return 0


def _pick(file: str, schema: Any, data: DataConfig) -> ParquetColumns:
    """Finds the columns and checks their types."""
    import pyarrow.types as types

    names = pick_columns(file, schema.names, data)
    audio_bytes, audio_path = _audio_columns(names.audio, schema.field(names.audio).type)
    if not audio_bytes and not audio_path:
        raise ManifestError(
            f"column {names.audio!r} of {file} holds {schema.field(names.audio).type}: expected the bytes of audio "
            "files, structs of bytes and path, or paths; another column can be named with --data.audio_column"
        )
    text = schema.field(names.text).type
    if types.is_nested(text) or types.is_boolean(text) or _is_bytes(text):
        raise ManifestError(
            f"column {names.text!r} of {file} holds {text}: expected text; another column can be named with "
            "--data.text_column"
        )
    optional = [
        name for name in OPTIONAL_COLUMNS if name in schema.names and not types.is_nested(schema.field(name).type)
    ]
    return ParquetColumns(names, audio_bytes, audio_path, tuple(optional))


def _audio_columns(name: str, kind: Any) -> tuple[str, str]:
    """Names of the columns that hold the audio's bytes and its path; empty where there is none."""
    import pyarrow.types as types

    if types.is_struct(kind):
        fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
        return (
            f"{name}.bytes" if "bytes" in fields and _is_bytes(fields["bytes"]) else "",
            f"{name}.path" if "path" in fields and _is_text(fields["path"]) else "",
        )
    return (name if _is_bytes(kind) else ""), (name if _is_text(kind) else "")


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
