"""A folder of audio files with a .txt beside each, which holds its transcript."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.converted import ConvertedCorpus, audio_files, convert, read_lines
from corpus.manifest import Format

ENDINGS = (".txt", ".lab")
FILES_LOOKED_AT = 1000


def _beside(folder: str, audio: str) -> Path | None:
    path = os.path.join(folder, audio)
    places = (place + ending for place in (os.path.splitext(path)[0], path) for ending in ENDINGS)
    return next((Path(place) for place in places if os.path.isfile(place)), None)


def _recognises(path: str) -> bool:
    return os.path.isdir(path) and any(_beside(path, audio) for audio in islice(audio_files(path), FILES_LOOKED_AT))


def _rows(folder: str) -> Iterator[dict[str, Any]]:
    """A row for each audio file; the text is empty where there is none, so that the file is in the report."""
    for audio in audio_files(folder):
        file = _beside(folder, audio)
        text = " ".join(line for _, line in read_lines(file)) if file else ""
        yield {"audio": audio, "text": text}


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    return convert(path, path, data, _rows(path))


TEXT_BESIDE = Format("text_beside", "a folder of audio with a .txt beside each file", _recognises, _open)
