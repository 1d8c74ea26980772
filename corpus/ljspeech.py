"""LJSpeech: a metadata.csv without header, `id|transcript|normalised transcript`, and wavs/ID.wav."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.columns import AUDIO_COLUMNS, TEXT_COLUMNS
from corpus.converted import ConvertedCorpus, convert, read_lines, with_ending
from corpus.manifest import Format, ManifestError

COLUMNS = ("id", "text", "normalized_text")
"""As the data set on the Hub names them."""


def _find(path: str) -> Path:
    return Path(path) / "metadata.csv" if os.path.isdir(path) else Path(path)


def _recognises(path: str) -> bool:
    file = _find(path)
    if file.suffix not in (".csv", ".txt") or not file.is_file():
        return False
    with file.open("rb") as lines:
        fields = lines.readline(2**16).decode(errors="replace").strip().split("|")
    has_header = bool({field.strip().casefold() for field in fields} & {*AUDIO_COLUMNS, *TEXT_COLUMNS})
    return len(fields) > 1 and not has_header and _audio(file.parent, fields[0]) is not None


def _audio(root: Path, name: str) -> str | None:
    places = (with_ending(root, os.path.join(folder, name)) for folder in ("wavs", "wav", "audio", ""))
    return next((place for place in places if (root / place).is_file()), None)


def _rows(file: Path, text_column: str) -> Iterator[dict[str, Any]]:
    if text_column not in ("", *COLUMNS[1:]):
        raise ManifestError(f"{file} has the columns {', '.join(COLUMNS)}: set --data.text_column to one of them")
    place = COLUMNS.index(text_column or "text")
    for _, line in read_lines(file):
        fields = line.split("|")
        text = fields[place] if place < len(fields) else ""
        yield {"audio": _audio(file.parent, fields[0]) or f"wavs/{fields[0]}.wav", "text": text, "id": fields[0]}


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    file = _find(path)
    return convert(path, str(file.parent), data, _rows(file, data.text_column))


LJSPEECH = Format("ljspeech", "LJSpeech's metadata.csv without header, id|text, beside wavs/", _recognises, _open)
