"""Subtitles beside the audio (talk.srt or talk.vtt beside talk.mp3): each of them is a segment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.converted import ConvertedCorpus, audio_files, convert, read_lines, with_ending
from corpus.manifest import Format

ENDINGS = (".srt", ".vtt")
TIMES = re.compile(r"\s*((?:\d+:)?\d+:\d+[.,]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[.,]\d+)")
MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
"""<i>, <v Speaker>, <00:01.000> of WebVTT; {\\an8} of SubRip."""
FILES_LOOKED_AT = 1000


def _beside(folder: str, audio: str) -> Path | None:
    stem = os.path.splitext(os.path.join(folder, audio))[0]
    return next((Path(stem + ending) for ending in ENDINGS if os.path.isfile(stem + ending)), None)


def _recognises(path: str) -> bool:
    if os.path.isdir(path):
        return any(_beside(path, audio) for audio in islice(audio_files(path), FILES_LOOKED_AT))
    return path.lower().endswith(ENDINGS)


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return round(seconds, 3)


def _cues(file: Path) -> Iterator[dict[str, Any]]:
    """Times and text of each subtitle; one ends at an empty line, or where the next one's number or times stand."""
    cue: dict[str, Any] | None = None
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        for line in [*lines, ""]:
            times = TIMES.match(line)
            if times or not line.strip():
                if cue:
                    yield {**cue, "text": MARKUP.sub("", cue["text"])}
                cue = {"start": _seconds(times[1]), "end": _seconds(times[2]), "text": ""} if times else None
            elif cue:
                cue["text"] += line


def _rows(path: str) -> Iterator[dict[str, Any]]:
    if not os.path.isdir(path):
        folder, name = os.path.split(path)
        audio = with_ending(folder, os.path.splitext(name)[0])
        yield from ({"audio": audio, **cue} for cue in _cues(Path(path)))
        return
    for audio in audio_files(path):
        file = _beside(path, audio)
        yield from ({"audio": audio, **cue} for cue in (_cues(file) if file else [{"text": ""}]))


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    if not os.path.isdir(path):
        list(islice(read_lines(Path(path)), 10**9))  # refuses what is not UTF-8, with the line
    return convert(path, path if os.path.isdir(path) else os.path.dirname(path), data, _rows(path))


SUBTITLES = Format("subtitles", "audio with .srt or .vtt beside it", _recognises, _open)
