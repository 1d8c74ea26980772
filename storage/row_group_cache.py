"""Audio inside Parquet files, row by row: row groups are unpacked once into plain files of the cache.

Parquet is packed in row groups (100 to millions of rows), and one value can't be read without unpacking its group. An
unpacked group is a file of int64 offsets and then the values, from which any process of the machine reads a value by
two calls of `pread`, without pyarrow. A group that is not there, or was deleted, is unpacked by the first process that
needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

from common.errors import one_line
from common.files import cannot_write, locked, written_whole
from common.redaction import without_secrets
from config import DataConfig
from storage.remote_files import DISK_FULL, SourceError, asking_again, is_url, open_file

T = TypeVar("T")

BLOCK_BYTES = 2**22
"""How much of a Parquet file is read at once, in bytes: bounds the memory for row groups of any size."""
LOCKS = 64
"""Number of lock files. Two groups may share one; their processes then wait for each other without need."""
OFFSET = struct.Struct("<q")
LOCATOR = re.compile(r"(?P<file>.+)#(?P<column>.+)/(?P<group>\d+)/(?P<index>\d+)/(?P<digest>[0-9a-f]{32})", re.DOTALL)


@dataclass(frozen=True)
class RowPlace:
    """The place of a value in a Parquet file."""

    file: str
    """Path or URL."""
    column: str
    """Dotted when it is a field of a struct: audio.bytes."""
    group: int
    """Row group, from 0."""
    index: int
    """Row in the group, from 0."""
    digest: str
    """Identity of the file's content."""

    @property
    def locator(self) -> str:
        """The place as one string."""
        return f"{self.file}#{self.column}/{self.group}/{self.index}/{self.digest}"


def parse_locator(audio: str) -> RowPlace | None:
    """The place that a locator names, or None when it is not one in a Parquet file."""
    if "#" not in audio or not (match := LOCATOR.fullmatch(audio)):
        return None
    file, column, group, index, digest = match.groups()
    return RowPlace(file, column, int(group), int(index), digest)


def read_value(place: RowPlace, data: DataConfig) -> bytes:
    """A value of a Parquet file, empty when it is null. Unpacks its row group if need be.

    Raises:
        SourceError: the file is gone, has changed, or can't be reached; or the disk is full.
    """
    unpacked = unpacked_path(place, data)
    while True:
        try:
            file = os.open(unpacked, os.O_RDONLY)
        except FileNotFoundError:
            unpack(place, data)
            continue
        try:
            begin, end = struct.unpack("<2q", os.pread(file, 2 * OFFSET.size, OFFSET.size * place.index))
            return os.pread(file, end - begin, begin)
        finally:
            os.close(file)


def unpacked_path(place: RowPlace, data: DataConfig) -> Path:
    """The file of a row group's values. With `data.streaming` it is in a folder from which old ones are deleted."""
    folder = Path(data.cache_dir) / ("streamed" if data.streaming else "unpacked")
    name = hashlib.blake2b(f"{place.digest} {place.column}".encode(), digest_size=12).hexdigest()
    return folder / f"{name}-{place.group}"


def unpack(place: RowPlace, data: DataConfig) -> None:
    """Writes a row group's values into the cache, if they are not there; one process at a time.

    Raises:
        SourceError: the file is gone, has changed, or can't be reached; or the disk is full.
    """
    path = unpacked_path(place, data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists():
                return
            with written_whole(path, durable=True, alone=True) as target:
                reading(place.file, data, lambda: _copy_values(place, target))
            if data.streaming:
                _delete_oldest(path.parent, data.streaming_cache_bytes, keep=path)
    except OSError as error:
        raise cannot_write(SourceError, path, error, "make room, or choose another --data.cache_dir") from error


def reading(file: str, data: DataConfig, action: Callable[[], T]) -> T:
    """Runs `action`, which reads a Parquet file, and runs it again while the file's store does not answer.

    Raises:
        SourceError: the file is gone, damaged, or can't be reached.
    """
    try:
        return asking_again(file, data.retry_timeout_s, action) if is_url(file) else action()
    except FileNotFoundError as error:
        raise SourceError(f"{without_secrets(file)} is gone: put it back and start again") from error
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are kinds of these
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise SourceError(f"cannot read {without_secrets(file)}: {one_line(error)}") from error


def _copy_values(place: RowPlace, target: IO[bytes]) -> None:
    """Writes the offsets and values of a row group to the beginning of `target`."""
    import pyarrow.parquet

    metadata = read_metadata(place.file, place.digest)
    rows = metadata.row_group(place.group).num_rows
    offsets = [OFFSET.size * (rows + 1)]
    with open_file(place.file, BLOCK_BYTES) as source:
        parquet = pyarrow.parquet.ParquetFile(source, metadata=metadata, buffer_size=BLOCK_BYTES, pre_buffer=False)
        target.seek(offsets[0])
        for batch in parquet.iter_batches(batch_size=32, row_groups=[place.group], columns=[place.column]):
            column = batch.column(0)
            for _ in place.column.split(".")[1:]:
                column = column.field(0)
            for value in column:
                offsets.append(offsets[-1] + (target.write(value.as_buffer()) if value.is_valid else 0))
        target.seek(0)
        target.write(struct.pack(f"<{rows + 1}q", *offsets))


@lru_cache(maxsize=32)
def read_metadata(file: str, digest: str) -> Any:
    """The metadata of a Parquet file, which must be the one with this identity."""
    import pyarrow.parquet

    footer = read_footer(file)
    if digest_footer(footer) != digest:
        raise SourceError(f"{without_secrets(file)} has changed since it was scanned: start again")
    return pyarrow.parquet.read_metadata(io.BytesIO(b"PAR1" + footer))


def read_footer(name: str) -> bytes:
    """The end of a Parquet file: schema, statistics and the place of everything in it. Call it inside `asking_again`.

    Raises:
        ValueError: it is no Parquet file.
    """
    with open_file(name, 2**16) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little") + 8
        if not end.endswith(b"PAR1") or length > size:
            raise ValueError("it does not end as a Parquet file does")
        file.seek(size - length)
        return file.read(length)


def digest_footer(footer: bytes) -> str:
    """Identity of a Parquet file's content. Its footer holds the sizes, places and statistics of all its parts."""
    return hashlib.blake2b(footer, digest_size=16).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process of this machine at a time unpack a row group."""
    number = int.from_bytes(hashlib.blake2b(path.name.encode(), digest_size=4).digest(), "little") % LOCKS
    locks = path.parent / "locks"
    locks.mkdir(exist_ok=True)
    with locked(locks / str(number)):
        yield


def _delete_oldest(folder: Path, limit_bytes: int, keep: Path) -> None:
    """Deletes the files that were unpacked first until the folder is below its limit.

    A streamed plan reads row groups in a moving window, so that the oldest are the first that it no longer needs.

    Args:
        folder: of the unpacked files.
        limit_bytes: its limit.
        keep: the file that is never deleted.
    """
    entries = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # another process deletes too
            if entry.is_file():
                entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    excess = sum(size for _, size, _ in entries) - limit_bytes
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        if path != str(keep):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            excess -= size
