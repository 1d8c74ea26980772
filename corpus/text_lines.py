"""Text files by lines: where each block of rows begins, and copies in plain UTF-8 of what is written otherwise."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.errors import one_line
from common.files import cannot_write, written_whole
from config import DataConfig
from corpus.columns import AUDIO_COLUMNS
from corpus.manifest import ROWS_PER_TASK, ManifestError

BOM = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LOOK_BYTES = 2**16
"""How much of a file is looked at to find out how it is written."""
END_OF_FILE = b"\x1a"
"""What DOS programs put behind the last line."""


def is_blank(line: bytes) -> bool:
    """Whether a line holds no row."""
    return not line.strip(b" \t\r\n\x1a\x0b\x0c")


def decode_line(line: bytes, number: int, manifest: str) -> str:
    """A line as text, without its end.

    Raises:
        ManifestError: it is not UTF-8.
    """
    try:
        return line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{manifest} is not UTF-8: {error.reason} in line {number} ({line[error.start : error.start + 4]!r}); "
            "save it as UTF-8"
        ) from error


def index_lines(file: IO[bytes], first_line: int = 1) -> tuple[np.ndarray, int]:
    """Where rows of one line each begin, from where the file stands.

    Args:
        file: its lines that are not blank are rows.
        first_line: number of the next line.

    Returns:
        int64 `[blocks, 2]`: offset and line number of each `ROWS_PER_TASK`-th row; and how many rows there are.
    """
    starts, rows, offset = [], 0, file.tell()
    for number, line in enumerate(file, first_line):
        if not is_blank(line):
            if not rows % ROWS_PER_TASK:
                starts.append((offset, number))
            rows += 1
        offset += len(line)
    return np.array(starts, np.int64).reshape(-1, 2), rows


def lines_from(path: Path, start: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers, from an offset and line number on."""
    with path.open("rb") as file:
        file.seek(start[0])
        for number, line in enumerate(file, start[1]):
            if not is_blank(line):
                yield number, line


def plain_file(path: Path, name: str, content: str, data: DataConfig) -> Path:
    """The file itself, or a copy in the cache: without gzip, with line feeds at the ends of lines, a JSON row a line.

    Args:
        path: the file.
        name: what messages call it.
        content: identity of its content.
        data: the cache folder.

    Raises:
        ManifestError: it can't be read, or is in UTF-16.
    """
    copy = Path(data.cache_dir) / "manifests" / content / f"plain{Path(path.name.removesuffix('.gz')).suffix.lower()}"
    if copy.exists():
        return copy
    try:
        with open_text(path) as file:
            start = file.read(LOOK_BYTES)
            _refuse_utf_16(start, name)
            is_json = copy.suffix in (".json", ".jsonl")
            has_lines = b"\n" in start or b"\r" not in start
            if is_json and not _has_rows_in_lines(start):
                return _write(copy, _json_rows(start + file.read(), name))
            if has_lines and path.suffix != ".gz":
                return path
            return _write(copy, _with_line_feeds(start, file, has_lines))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(f"cannot read {name}: {one_line(error)}") from error


def open_text(path: Path) -> IO[bytes]:
    """A file to read, unpacked when its name ends in .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _refuse_utf_16(start: bytes, name: str) -> None:
    zeros = [start[parity:200:2].count(0) for parity in (0, 1)]
    if start.startswith(UTF_16_MARKS) or max(zeros) > 0.8 * len(start[:200]) / 2 > 0:
        raise ManifestError(f"{name} is not UTF-8 but UTF-16: save it as UTF-8")


def _has_rows_in_lines(start: bytes) -> bool:
    """Whether a file has a JSON object in each line; if not, it is one JSON text."""
    lines = [line for line in start.removeprefix(BOM).decode(errors="replace").split("\n") if line.strip()]
    if not lines:
        return True
    if len(lines) == 1 and len(start) < LOOK_BYTES:
        return False
    return lines[0].lstrip().startswith("{") and (len(lines) == 1 or lines[0].rstrip().endswith("}"))


def _json_rows(content: bytes, name: str) -> Iterator[bytes]:
    """The rows of a JSON text as lines: a list of them, that list as a value of an object, or columns."""
    try:
        rows = json.loads(content.removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"cannot read {name}: neither JSON lines nor JSON: {one_line(error)}") from error
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        is_row = any(name in rows for name in AUDIO_COLUMNS)
        rows = lists[0] if len(lists) == 1 and not is_row else _transposed(rows)
    if not isinstance(rows, list):
        raise ManifestError(f"cannot read {name}: expected a JSON object in each line, or a list of them")
    for row in rows:
        yield json.dumps(row).encode() + b"\n"


def _transposed(columns: dict[str, Any]) -> Any:
    """Rows of columns: {"audio": {"0": …}} as pandas writes them, {"audio": […]}, or the object as the only row."""
    if columns and all(isinstance(column, dict) for column in columns.values()):
        keys = dict.fromkeys(key for column in columns.values() for key in column)
        return [{name: column.get(key) for name, column in columns.items()} for key in keys]
    if columns and all(isinstance(column, list) for column in columns.values()):
        return [dict(zip(columns, values, strict=False)) for values in zip(*columns.values(), strict=False)]
    return [columns]


def _with_line_feeds(start: bytes, file: IO[bytes], has_lines: bool) -> Iterator[bytes]:
    piece = start
    while piece:
        yield piece if has_lines else piece.replace(b"\r", b"\n")
        piece = file.read(LOOK_BYTES)


def _write(copy: Path, pieces: Iterator[bytes]) -> Path:
    try:
        with written_whole(copy) as target:
            for piece in pieces:
                target.write(piece)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        remedy = "make room, or choose another --data.cache_dir"
        raise cannot_write(ManifestError, copy, error, remedy) from error
    return copy
