"""Manifests in CSV or TSV, with any of the usual separators. Every value is text: 1984 and null stay what they are."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from config import DataConfig
from corpus.columns import OPTIONAL_COLUMNS, Columns, pick_columns, read_row
from corpus.manifest import ROWS_PER_TASK, ManifestError, ManifestRow
from corpus.quoting import is_written_with_quotes
from corpus.text_lines import BOM, decode_line, is_blank

SEPARATORS = (",", "\t", ";", "|")
SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
LONGEST_FIELD = 2**20
"""Characters; a longer one comes from a quote that is not closed."""
NUMBERS = frozenset(OPTIONAL_COLUMNS) - {"id", "language", "task"}
END = "\x00end of the manifest\x00"
"""A row put behind the last one: a quote that is still open there would swallow it."""


@dataclass(frozen=True)
class Dialect:
    """How the rows of a file are written."""

    separator: str
    is_quoted: bool
    """Whether a value in double quotes is meant without them, and may hold separators and line breaks."""


@dataclass(frozen=True)
class DelimitedTable:
    """The rows of a CSV or TSV file."""

    file: Path
    name: str
    """For messages."""
    dialect: Dialect
    names: tuple[str, ...]
    columns: Columns
    data: DataConfig
    starts: np.ndarray
    """int64 `[blocks, 2]`: offset and line number of each `ROWS_PER_TASK`-th row."""
    rows: int
    notes: tuple[str, ...] = ()
    blocks: None = None

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each enough for one task of a scan."""
        for start in range(0, self.rows, ROWS_PER_TASK):
            yield start, min(start + ROWS_PER_TASK, self.rows)

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows `start` to `stop` - 1; `start` is a multiple of `ROWS_PER_TASK`."""
        wanted = {self.columns.audio, self.columns.text, *OPTIONAL_COLUMNS}
        places = {name: self.names.index(name) for name in dict.fromkeys(self.names) if name in wanted}
        offset, line = self.starts[start // ROWS_PER_TASK].tolist()
        rows = _Rows(self.file, self.name, self.dialect, offset, line)
        for row in islice(rows, stop - start):
            values = {name: row[place] if place < len(row) else "" for name, place in places.items()}
            if self.dialect.separator == ";":  # where numbers have a decimal comma
                values |= {name: value.replace(",", ".") for name, value in values.items() if name in NUMBERS}
            yield read_row(values, self.columns, self.data)


class _Rows:
    """The rows of a file from an offset on, as lists of values, blank ones left out."""

    def __init__(self, file: Path, name: str, dialect: Dialect, offset: int, line: int) -> None:
        self._file, self._name, self._dialect = file, name, dialect
        self.offset, self.line = offset, line
        """Where the next row begins."""

    def _lines(self) -> Iterator[str]:
        with self._file.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                text = decode_line(line.removeprefix(BOM) if not self.offset else line, self.line, self._name)
                self.offset, self.line = self.offset + len(line), self.line + 1
                yield text.replace("\r", " ") + "\n"

    def __iter__(self) -> Iterator[list[str]]:
        if not self._dialect.is_quoted:
            for line in self._lines():
                if line.strip(" \t\n\x1a"):
                    yield line[:-1].split(self._dialect.separator)
            return
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.reader(self._and_end(), delimiter=self._dialect.separator)
        begin = last_begin = self.line
        row: list[str] = []
        try:
            for row in reader:
                if len(row) > 1 or (row and row[0] != END and row[0].strip(" \t\x1a")):
                    yield row
                last_begin, begin = begin, self.line
        except csv.Error as error:
            raise self.open_quote(begin, str(error)) from error
        if row != [END]:
            raise self.open_quote(last_begin, "a quote is not closed")

    def _and_end(self) -> Iterator[str]:
        yield from self._lines()
        yield END + "\n"

    def open_quote(self, line: int, reason: str) -> ManifestError:
        """The error for a quote that swallows what comes behind it."""
        return ManifestError(
            f"cannot read {self._name}: {reason}, in the row that begins in line {line}: is there a double quote too "
            'many or too few? A quote inside a quoted value is written twice ("")'
        )


def index_delimited(file: Path, name: str, data: DataConfig) -> DelimitedTable:
    """Finds out how a CSV or TSV file is written, and where its rows are.

    Args:
        file: in UTF-8.
        name: what messages call it.
        data: names of columns.

    Raises:
        ManifestError: it can't be parsed, or a column is missing.
    """
    offset, line, header, separator = _read_header(file, name)
    dialect, names, columns = _find_dialect(file, header, separator, name, data)
    rows = _Rows(file, name, dialect, offset, line)
    starts, count, row_begin = [], 0, (offset, line)
    for row in rows:
        if rows.line - row_begin[1] > 1:
            _check_lines(rows, row, columns, names, row_begin[1])
        if len(row) > len(names) and any(value.strip() for value in row[len(names) :]):
            raise ManifestError(
                f"cannot read {name}: expected {len(names)} fields in line {row_begin[1]}, saw {len(row)}; a value "
                "that holds the separator belongs into double quotes"
            )
        if not count % ROWS_PER_TASK:
            starts.append(row_begin)
        count, row_begin = count + 1, (rows.offset, rows.line)
    if not count:
        raise ManifestError(f"{name} holds no rows")
    quotes = "with" if dialect.is_quoted else "without"
    notes = (f"values are separated by {SEPARATOR_NAMES[dialect.separator]} and written {quotes} quotes",)
    table = np.array(starts, np.int64).reshape(-1, 2)
    return DelimitedTable(file, name, dialect, tuple(names), columns, data, table, count, notes)


def _check_lines(rows: _Rows, row: list[str], columns: Columns, names: list[str], line: int) -> None:
    """Refuses a row over several lines that hold what looks like further rows, from a quote too many."""
    place = names.index(columns.audio)
    ending = PurePosixPath(row[place]).suffix.casefold() if place < len(row) else ""
    for value in row:
        for part in value.split("\n") if "\n" in value else ():
            fields = part.split(rows._dialect.separator)
            looks_like_audio = ending and any(PurePosixPath(field).suffix.casefold() == ending for field in fields)
            if len(fields) > 1 and (looks_like_audio or (not ending and len(fields) == len(names))):
                raise rows.open_quote(line, f"a value holds what looks like another row ({part[:60]!r})")


def _read_header(file: Path, name: str) -> tuple[int, int, str, str]:
    """Offset and number of the line behind the header, the header, and the separator that a line sep=… names."""
    separator, offset = "", 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = decode_line(line.removeprefix(BOM) if number == 1 else line, number, name)
            offset += len(line)
            if text.casefold().startswith("sep=") and len(text.strip()) == len("sep=;"):
                separator = text.strip()[-1]
            elif not is_blank(line):
                return offset, number + 1, text, separator
    raise ManifestError(f"{name} holds no rows")


def _find_dialect(
    file: Path, header: str, separator: str, name: str, data: DataConfig
) -> tuple[Dialect, list[str], Columns]:
    """The separator with which the header has the columns, and whether values are in quotes."""
    first = separator or ("\t" if file.suffix.lower() == ".tsv" else ",")
    failure = None
    for candidate in dict.fromkeys([first, *(SEPARATORS if not separator else ())]):
        names = [value.strip() for value in next(csv.reader([header], delimiter=candidate), [])]
        try:
            columns = pick_columns(name, [each for each in names if each], data)
        except ManifestError as error:
            failure = failure or error
            continue
        is_quoted = candidate in ",;" or is_written_with_quotes(file, name, candidate, header)
        return Dialect(candidate, is_quoted), names, columns
    assert failure
    likely = max(SEPARATORS, key=header.count)
    hints = [f"it looks separated by {SEPARATOR_NAMES[likely]}"] if likely != first and likely in header else []
    if any(value.strip().casefold().endswith((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")) for value in
           header.split(likely)):  # fmt: skip
        hints.append("its first line looks like a recording: is there no header line?")
    raise ManifestError("; ".join([str(failure), *hints])) from failure
