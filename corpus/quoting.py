"""Whether a file with tabs or bars between its values is written with quotes. Both are usual, and no header tells.

Common Voice writes a sentence with quotes in it as it is; pandas puts quotes around it and doubles those inside.
"""

from __future__ import annotations

import csv
from pathlib import Path

from corpus.manifest import ManifestError
from corpus.text_lines import decode_line


def is_written_with_quotes(file: Path, name: str, separator: str, header: str) -> bool:
    """Whether double quotes around a value are not part of it.

    Args:
        file: the manifest.
        name: what messages call it.
        separator: between the values.
        header: its first line.

    Raises:
        ManifestError: one line can only be read with quotes, another only without.
    """
    columns = header.rstrip(separator).split(separator)
    if all(_is_quoted(value) for value in columns):
        return True
    with_quotes = without = unclosed = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if b'"' not in line and not unclosed:
                continue
            values = decode_line(line, number, name).rstrip(separator).split(separator)
            if unclosed:
                continues = len(values) < len(columns) and values[0].endswith('"')
                with_quotes, without = (with_quotes or unclosed, without) if continues else (with_quotes, unclosed)
                unclosed = 0
                if continues:
                    continue
            if len(values) > len(columns):
                joined = next(csv.reader([decode_line(line, number, name)], delimiter=separator), [])
                with_quotes = with_quotes or (number if len(joined) <= len(columns) else 0)
                continue
            for value in values:
                if '"' in value and not _is_quoted(value):
                    if value is values[-1] and value.startswith('"') and value.count('"') == 1:
                        unclosed = number
                    else:
                        without = without or number
                elif '""' in value[1:-1]:
                    with_quotes = with_quotes or number
    without = without or unclosed
    if with_quotes and without:
        raise ManifestError(
            f"cannot read {name}: line {with_quotes} is written with quotes around values, line {without} without: "
            "write all lines in one way"
        )
    return bool(with_quotes)


def _is_quoted(value: str) -> bool:
    """Whether a value is well formed as one in quotes: they are at both ends, and doubled inside."""
    return len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1].replace('""', "")
