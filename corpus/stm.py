"""STM: a line per segment, `recording channel speaker begin end <labels> transcript`; the audio lies beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.converted import ConvertedCorpus, convert, read_lines, with_ending
from corpus.manifest import Format, ManifestError

CHANNELS = {"1": 0, "2": 1, "A": 0, "B": 1}
NOT_SCORED = "ignore_time_segment_in_scoring"
"""What stands for the transcript of what is to be left out."""
FOLDERS = ("", "wav", "audio", "sph", "../wav", "../audio", "../sph")


def _recognises(path: str) -> bool:
    return path.lower().endswith(".stm") or (os.path.isdir(path) and any(Path(path).glob("*.stm")))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    folder = path if path.is_dir() else path.parent

    @lru_cache(maxsize=1024)
    def find(name: str) -> str:
        places = [with_ending(folder, os.path.join(place, name)) for place in FOLDERS]
        return next((place for place in places if (folder / place).is_file()), places[0])

    for file in sorted(path.glob("*.stm")) if path.is_dir() else [path]:
        for number, line in read_lines(file):
            if line.startswith(";;"):
                continue
            try:
                name, channel, _, start, end, *rest = line.split(None, 5)
                times = {"start": float(start), "end": float(end)}
            except ValueError as error:
                raise ManifestError(f"line {number} of {file} is no segment in STM: {line[:60]!r}") from error
            text = rest[0] if rest else ""
            text = text.partition(">")[2] if text.startswith("<") else text
            text = "" if text.strip().casefold() == NOT_SCORED else text
            yield {"audio": find(name), "text": text, "channel": CHANNELS.get(channel.upper()), **times}


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    return convert(path, path if os.path.isdir(path) else os.path.dirname(path), data, _rows(Path(path)))


STM = Format("stm", "an .stm file beside its audio", _recognises, _open)
