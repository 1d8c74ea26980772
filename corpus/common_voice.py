"""Common Voice: validated.tsv (or another TSV of the release) beside clips/, durations in clip_durations.tsv."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from audio.audio_file import RecordingError
from config import DataConfig
from corpus.converted import ConvertedCorpus, convert, read_lines
from corpus.delimited import index_delimited
from corpus.manifest import Format

FILES = ("validated.tsv", "train.tsv")
"""Which file a folder means."""
COLUMNS = {"client_id", "path", "sentence"}


def _find(path: str) -> Path:
    files = [Path(path) / name for name in FILES] if os.path.isdir(path) else [Path(path)]
    return next((file for file in files if file.is_file()), files[0])


def _recognises(path: str) -> bool:
    file = _find(path)
    if file.suffix != ".tsv" or not file.is_file() or not (file.parent / "clips").is_dir():
        return False
    return set(next(read_lines(file), (1, ""))[1].split("\t")) >= COLUMNS


def _rows(file: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    durations = _durations(file.parent / "clip_durations.tsv")
    usual = replace(data, audio_column=data.audio_column or "path", text_column=data.text_column or "sentence")
    table = index_delimited(file, str(file), usual)
    for task in table.tasks():
        for row in table.read(*task):
            name = row.audio if os.path.splitext(row.audio)[1] else f"{row.audio}.mp3"
            text = "" if isinstance(row.transcript, RecordingError) else row.transcript
            audio = f"clips/{name}" if row.audio else ""
            yield {"audio": audio, "text": text, "id": name, "duration": durations.get(name)}


def _durations(file: Path) -> dict[str, float]:
    """Seconds by clip; the file has milliseconds."""
    found: dict[str, float] = {}
    for number, line in read_lines(file) if file.is_file() else ():
        name, _, milliseconds = line.partition("\t")
        if number > 1 and milliseconds.strip().isdigit():
            found[name] = int(milliseconds) / 1000
    return found


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    file = _find(path)
    return convert(path, str(file.parent), data, _rows(file, data))


COMMON_VOICE = Format("common_voice", "a Common Voice release (validated.tsv and clips/)", _recognises, _open)
