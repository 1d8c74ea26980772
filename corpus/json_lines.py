"""Manifests in JSON lines. A string arrives as it is, whatever other rows hold: no types are guessed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from config import DataConfig
from corpus.columns import Columns, pick_columns, read_row
from corpus.manifest import ROWS_PER_TASK, ManifestError, ManifestRow
from corpus.text_lines import BOM, decode_line, index_lines, lines_from

NOT_KNOWN = Columns("", "")


@dataclass(frozen=True)
class JsonLines:
    """The rows of a file of JSON lines."""

    file: Path
    name: str
    """For messages."""
    starts: np.ndarray
    """int64 `[blocks, 2]`: offset and line number of each `ROWS_PER_TASK`-th row."""
    rows: int
    data: DataConfig
    columns: Columns = NOT_KNOWN
    notes: tuple[str, ...] = ()
    blocks: None = None

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each enough for one task of a scan."""
        for start in range(0, self.rows, ROWS_PER_TASK):
            yield start, min(start + ROWS_PER_TASK, self.rows)

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows `start` to `stop` - 1; `start` is a multiple of `ROWS_PER_TASK`.

        Raises:
            ManifestError: a line is not a JSON object in UTF-8.
        """
        for values in self.values(start, stop):
            yield read_row(values, self.columns, self.data)

    def values(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The objects of these rows."""
        if start >= stop:
            return
        offset, first_line = self.starts[start // ROWS_PER_TASK].tolist()
        for number, line in islice(lines_from(self.file, (offset, first_line)), stop - start):
            yield _parse(line, number, self.name)


def index_json_lines(file: Path, name: str, data: DataConfig) -> JsonLines:
    """Finds the rows of a file of JSON lines, and its columns.

    Args:
        file: in UTF-8, a JSON object a line.
        name: what messages call it.
        data: names of columns.

    Raises:
        ManifestError: it holds no rows, or there is no such column in any of them.
    """
    with file.open("rb") as lines:
        starts, rows = index_lines(lines)
    table = JsonLines(file, name, starts, rows, data)
    if not rows:
        raise ManifestError(f"{name} holds no rows")
    names: dict[str, None] = {}
    for start, stop in table.tasks():  # usually the first will do
        names |= {key: None for values in table.values(start, stop) for key in values}
        try:
            return replace(table, columns=pick_columns(name, list(names), data))
        except ManifestError:
            if stop == rows:
                raise
    raise AssertionError("there are rows")


def _parse(line: bytes, number: int, manifest: str) -> dict[str, Any]:
    text = decode_line(line.removeprefix(BOM) if number == 1 else line, number, manifest)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"cannot read {manifest}: line {number} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ManifestError(f"cannot read {manifest}: line {number} is not a JSON object ({text[:40]!r})")
    return values
