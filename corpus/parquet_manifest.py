"""Data sets in Parquet, with the audio's bytes inside: local files, URLs, or the Hugging Face Hub."""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from common.errors import one_line
from common.redaction import without_secrets
from config import HUB_MANIFEST, DataConfig
from corpus.manifest import ROWS_PER_TASK, WILDCARDS, ManifestError, ManifestRow, pick_columns
from storage.remote_files import asking_again, is_url, join, list_files, network_errors, open_file
from storage.row_group_cache import (
    BLOCK_BYTES,
    RowPlace,
    digest_footer,
    read_footer,
    read_metadata,
    reading,
    unpack,
    unpacked_path,
)

FOOTERS_AT_ONCE = 16


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


def open_parquet(path: str, data: DataConfig) -> ParquetManifest:
    """Finds the files of a data set, and identifies them by their footers.

    Args:
        path: a file, a folder, a pattern with wildcards; a URL of these; or hf://org/name:split.
        data: says how long to ask a store that does not answer.

    Raises:
        ManifestError: there are none, or one is no Parquet file.
        SourceError: they can't be reached.
    """
    files = _hub_files(path) if HUB_MANIFEST.fullmatch(path) else _list_files(path, data)
    if not files:
        raise ManifestError(f"no Parquet files at {without_secrets(path)}")
    protocol = files[0].partition("://")[0] + "://" if is_url(files[0]) else ""
    root = protocol + posixpath.commonpath([posixpath.dirname(file.removeprefix(protocol)) for file in files])
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = threads.map(lambda file: _identify(file, data.retry_timeout_s), files)
        names = tuple(posixpath.relpath(file.removeprefix(protocol), root.removeprefix(protocol)) for file in files)
        return ParquetManifest(without_secrets(path), root, names, tuple(footers))


def _list_files(path: str, data: DataConfig) -> list[str]:
    has_wildcards = any(character in path for character in WILDCARDS)
    if is_url(path):
        return list_files(path, data.retry_timeout_s) if has_wildcards else [path]
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return sorted(glob.glob(os.path.join(glob.escape(path), "*.parquet")))
    return [path] if os.path.exists(path) or not has_wildcards else sorted(glob.glob(path, recursive=True))


def _hub_files(path: str) -> list[str]:
    """The Parquet files of splits of a data set on the Hub. `datasets` knows how repositories are laid out."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    match = HUB_MANIFEST.fullmatch(path)
    assert match  # the configuration has been checked
    revision = unquote(match["revision"]) if match["revision"] else None
    try:
        builder = datasets.load_dataset_builder(match["folder"] or match["name"], match["config"], revision=revision)
    except (DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise ManifestError(f"cannot find {path}: {one_line(error)}") from error
    except network_errors() as error:
        raise ManifestError(
            f"cannot reach {path}: {one_line(error)}; without network give a folder or Parquet files"
        ) from error
    found = builder.config.data_files or {}
    files: list[str] = []
    for split in match["split"].split("+"):
        if split not in found:
            raise ManifestError(
                f"{path} has no split {split!r}: it has {', '.join(map(str, found)) or 'no data files'}"
            )
        files += found[split]
    if wrong := [file for file in files if not file.endswith(".parquet")]:
        raise ManifestError(
            f"{path} is not in Parquet ({posixpath.basename(wrong[0])}): the Hub keeps a copy in Parquet of most data "
            f"sets, hf://{match['name'] or 'org/name'}@refs%2Fconvert%2Fparquet:{match['split']}"
        )
    return files


def _identify(file: str, retry_timeout_s: float) -> str:
    try:
        footer = asking_again(file, retry_timeout_s, lambda: read_footer(file)) if is_url(file) else read_footer(file)
    except FileNotFoundError as error:
        raise ManifestError(
            f"no manifest at {without_secrets(file)}: set --data.train_manifest (or --data.eval_manifest) to yours"
        ) from error
    except (OSError, ValueError) as error:
        raise ManifestError(f"cannot read {without_secrets(file)} as Parquet: {error}") from error
    return digest_footer(footer)


@dataclass(frozen=True)
class ParquetTable:
    """The rows of a Parquet data set, and which of its columns is what. Cheap to pickle."""

    manifest: ParquetManifest
    data: DataConfig
    groups: np.ndarray
    """int64 `[row groups, 4]`: file, number in the file, rows, bytes of audio (0: it holds paths only)."""
    bytes_column: str
    """Column of the audio's bytes, a field of a struct or not. Empty: there are paths only."""
    path_column: str
    """Column of the audio's path or name, a field of a struct or not. Empty: there is none."""
    text: str
    duration: str | None
    id: str | None

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return int(self.groups[:, 2].sum())

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
        place = RowPlace(join(self.manifest.root, name), self.bytes_column, group, 0, digest)
        if has_bytes and not self.data.streaming:
            unpack(place, self.data)
        index = 0
        for batch in reading(place.file, self.data, lambda: self._read_values(place)):
            for values in batch.to_pylist():
                path = _value(values, self.path_column)
                audio = RowPlace(name, self.bytes_column, group, index, digest).locator if has_bytes else path
                yield ManifestRow(
                    audio=audio,
                    name=path or f"{name}#{first_row + index}",
                    text=values[self.text],
                    duration=values[self.duration] if self.duration else None,
                    id=values[self.id] if self.id else None,
                )
                index += 1

    def _read_values(self, place: RowPlace) -> list[Any]:
        """Record batches of a row group, all columns that are read but the audio's bytes."""
        import pyarrow.parquet

        columns = [name for name in (self.path_column, self.text, self.duration, self.id) if name]
        with open_file(place.file, BLOCK_BYTES) as source:
            metadata = read_metadata(place.file, place.digest)
            parquet = pyarrow.parquet.ParquetFile(source, metadata=metadata, buffer_size=BLOCK_BYTES, pre_buffer=False)
            return list(parquet.iter_batches(batch_size=ROWS_PER_TASK, row_groups=[place.group], columns=columns))

    def check_space(self) -> None:
        """Refuses a data set whose audio will not fit where it is to be unpacked, before hours of unpacking.

        Raises:
            ManifestError: it won't fit, and what would.
        """
        import shutil

        data, gib = self.data, 2**30
        sizes = self.groups[:, 3]
        folder = Path(data.cache_dir)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if data.streaming:
            largest = int(sizes.max(initial=0))
            groups = max(
                4, 2 * (data.num_workers or os.cpu_count() or 1)
            )  # each process of a scan is at one of its own
            if groups * largest > data.streaming_cache_bytes:
                raise ManifestError(
                    f"a row group of {self.manifest.name} has {largest / gib:.2f} GB of audio, and "
                    f"data.streaming_cache_gb ({data.streaming_cache_gb:g}) must hold {groups} of them: set it to "
                    f"{1.01 * groups * largest / gib:.2f}, or write the data set with smaller row groups"
                )
            needed = min(data.streaming_cache_bytes, int(sizes.sum()))
            remedy = "lower --data.streaming_cache_gb"
        else:
            needed, remedy = self._bytes_to_unpack(), "read it through a window with --data.streaming True"
        if needed > free:
            raise ManifestError(
                f"the audio of {self.manifest.name} takes {needed / gib:.2f} GB in {folder.absolute()}, whose disk has "
                f"{free / gib:.2f} GB free: choose another --data.cache_dir, or {remedy}"
            )

    def _bytes_to_unpack(self) -> int:
        needed = 0
        for file, group, rows, size in self.groups.tolist():
            place = RowPlace("", self.bytes_column, group, 0, self.manifest.digests[file])
            if not unpacked_path(place, self.data).exists():
                needed += size + 8 * (rows + 1)
        return needed


def _value(values: dict[str, Any], column: str) -> str:
    value: Any = values
    for part in column.split(".") if column else []:
        value = value[part] if value else None
    return value if isinstance(value, str) else ""


def index_parquet(manifest: ParquetManifest, data: DataConfig) -> ParquetTable:
    """Reads the footers of a data set: its columns and row groups.

    Raises:
        ManifestError: a column is missing or of the wrong type, the files differ, or the disk is too small.
    """
    groups: list[tuple[int, int, int, int]] = []
    table = None
    for number, (name, digest) in enumerate(zip(manifest.files, manifest.digests, strict=True)):
        file = join(manifest.root, name)
        metadata = reading(file, data, partial(read_metadata, file, digest))
        columns = _pick(without_secrets(file), metadata.schema.to_arrow_schema(), data)
        if table is None:
            table = ParquetTable(manifest, data, np.zeros((0, 4), np.int64), **columns)
        elif columns != {key: getattr(table, key) for key in columns}:
            raise ManifestError(f"{without_secrets(file)} has other columns than {manifest.files[0]}")
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            groups.append((number, group, rows, _audio_bytes(metadata.row_group(group), columns["bytes_column"])))
    assert table is not None
    table = ParquetTable(manifest, data, np.array(groups, np.int64).reshape(-1, 4), **columns)
    table.check_space()
    return table


def _audio_bytes(group: Any, column: str) -> int:
    """Bytes of audio in a row group; 0 when all of them are null."""
    for number in range(group.num_columns if column else 0):
        chunk = group.column(number)
        if chunk.path_in_schema == column:
            statistics = chunk.statistics
            is_empty = statistics is not None and statistics.has_null_count and statistics.null_count == group.num_rows
            return 0 if is_empty else max(1, chunk.total_uncompressed_size)
    return 0


def _pick(file: str, schema: Any, data: DataConfig) -> dict[str, Any]:
    """Finds the columns and checks their types."""
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return bool(types.is_string(kind) or types.is_large_string(kind))

    names = pick_columns(file, schema.names, data)
    kind = schema.field(names.audio).type
    fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)} if types.is_struct(kind) else {}
    bytes_column = path_column = ""
    if fields:
        bytes_column = f"{names.audio}.bytes" if "bytes" in fields and is_bytes(fields["bytes"]) else ""
        path_column = f"{names.audio}.path" if "path" in fields and is_text(fields["path"]) else ""
    elif is_bytes(kind):
        bytes_column = names.audio
    elif is_text(kind):
        path_column = names.audio
    if not bytes_column and not path_column:
        raise ManifestError(
            f"column {names.audio!r} of {file} holds {kind}: expected the bytes of audio files, structs of bytes and "
            "path, or paths; another column can be named with --data.audio_column"
        )
    text = schema.field(names.text).type
    if types.is_nested(text) or is_bytes(text):
        raise ManifestError(
            f"column {names.text!r} of {file} holds {text}: expected text; another column can be named with "
            "--data.text_column"
        )
    return {
        "bytes_column": bytes_column, "path_column": path_column,
        "text": names.text, "duration": names.duration, "id": names.id,
    }  # fmt: skip
