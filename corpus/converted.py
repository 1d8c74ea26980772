"""Corpora of other layouts, written down once as JSON lines in the cache: a format then is a generator of rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.files import cannot_write, written_whole
from config import DataConfig
from corpus.json_lines import index_json_lines
from corpus.manifest import ManifestError, Table
from corpus.text_lines import decode_line, is_blank, open_text

AUDIO_ENDINGS = (
    ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".mkv", ".wma", ".amr", ".sph", ".aiff",
    ".aif", ".au",
)  # fmt: skip
"""Of file names, in the order in which they are tried."""


@dataclass(frozen=True)
class ConvertedCorpus:
    """A corpus whose rows have been written to the cache."""

    name: str
    """For messages."""
    root: str
    """Relative audio paths start at this folder."""
    content: str
    """Identity of the rows."""
    file: Path
    """The rows: JSON lines with the columns audio and text, and the optional ones of `corpus.columns`."""

    def index(self, data: DataConfig) -> Table:
        """The rows as a table."""
        return index_json_lines(self.file, self.name, replace(data, audio_column="audio", text_column="text"))


def convert(path: str, root: str, data: DataConfig, rows: Iterable[Mapping[str, Any]]) -> ConvertedCorpus:
    """Writes the rows of a corpus to the cache.

    Args:
        path: what messages call it.
        root: folder at which relative audio paths start.
        data: the cache folder.
        rows: values by column: audio, text, and the optional ones of `corpus.columns`.

    Raises:
        ManifestError: there are no rows, or the cache can't be written.
    """
    folder = Path(data.cache_dir) / "manifests"
    digest, count = hashlib.blake2b(digest_size=16), 0
    source = iter(rows)
    unfinished = folder / f"rows-{os.getpid()}.jsonl"
    try:
        with written_whole(unfinished) as file:
            for row in source:
                line = json.dumps(row).encode() + b"\n"
                digest.update(line)
                file.write(line)
                count += 1
        if not count:
            unfinished.unlink()
            raise ManifestError(f"{path} holds no recordings")
        finished = folder / digest.hexdigest() / "rows.jsonl"
        finished.parent.mkdir(exist_ok=True)
        unfinished.replace(finished)
    except OSError as error:
        if str(error.filename).startswith(str(folder)) or error.filename is None:
            remedy = "make room, or choose another --data.cache_dir"
            raise cannot_write(ManifestError, folder, error, remedy) from error
        raise
    return ConvertedCorpus(path, os.path.abspath(root), digest.hexdigest(), finished)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1, unpacked when the name ends in .gz.

    Raises:
        ManifestError: they are not UTF-8.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not is_blank(line):
                yield number, decode_line(line, number, str(path)).removeprefix("\ufeff")


def read_table(path: Path, separator: str | None = None) -> dict[str, str]:
    """A file with a key and a value in each line, such as Kaldi's; no such file: nothing."""
    if not path.is_file():
        return {}
    pairs = (line.strip().split(separator, 1) for _, line in read_lines(path))
    return {pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs}


def with_ending(root: str | os.PathLike[str], name: str) -> str:
    """A name without ending, with that of the audio file that is there; with the first of the usual, if none is."""
    for ending in ("", *AUDIO_ENDINGS):
        if os.path.isfile(os.path.join(root, name + ending)):
            return name + ending
    return name + AUDIO_ENDINGS[0]


def audio_files(folder: str) -> Iterator[str]:
    """Audio files in a folder and the folders below, by their names relative to it, sorted. Hidden ones are left out:
    `._a.wav` beside `a.wav` is what macOS knows about it."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(AUDIO_ENDINGS) and not name.startswith("."):
                yield os.path.relpath(os.path.join(place, name), folder)
