"""LibriSpeech (*.trans.txt beside the audio) and Multilingual LibriSpeech (transcripts.txt and audio/)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.converted import ConvertedCorpus, convert, read_lines, with_ending
from corpus.manifest import Format

DEPTHS = ("*.trans.txt", "*/*.trans.txt", "*/*/*.trans.txt", "*/*/*/*.trans.txt")


def _recognises(path: str) -> bool:
    if not os.path.isdir(path):
        return path.endswith(".trans.txt")
    folder = Path(path)
    is_multilingual = (folder / "transcripts.txt").is_file() and (folder / "audio").is_dir()
    return is_multilingual or any(next(folder.glob(depth), None) for depth in DEPTHS)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of both; audio relative to the folder."""
    folder = path if path.is_dir() else path.parent
    if (folder / "transcripts.txt").is_file():
        for _, line in read_lines(folder / "transcripts.txt"):
            name, _, text = line.partition("\t")
            place = os.path.join("audio", *name.split("_")[:2], name)
            yield {"audio": with_ending(folder, place), "text": text, "id": name}
        return
    for file in sorted(folder.rglob("*.trans.txt")) if path.is_dir() else [path]:
        for _, line in read_lines(file):
            name, _, text = line.partition(" ")
            place = os.path.join(os.path.relpath(file.parent, folder), name).removeprefix("./")
            yield {"audio": with_ending(folder, place), "text": text, "id": name}


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    root = path if os.path.isdir(path) else os.path.dirname(path)
    return convert(path, root, data, _rows(Path(path)))


LIBRISPEECH = Format("librispeech", "LibriSpeech (*.trans.txt) or MLS (transcripts.txt, audio/)", _recognises, _open)
