"""Several corpora in one run: a YAML list of manifests, each with a name, a weight, a language, a task and a format.

    - manifest: bengali/train.csv
      name: bengali
    - manifest: english/*.parquet
      name: english
      weight: 0.3
      language: en

The table of a mixture is the tables of its corpora, one behind the other. A recording is called NAME/ID after its
corpus. How often the recordings of a corpus come, its weight says, which `producing.plan` reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import posixpath
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from common.errors import one_line
from common.redaction import without_secrets
from config import DataConfig
from corpus.columns import TASKS
from corpus.manifest import Corpus, Format, ManifestError, ManifestRow, Table
from storage.remote_files import is_url, join, read_file

NAME = "mixture"
ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """What a mixture file says of one corpus. The names of the fields are the keys."""

    manifest: str
    """As `data.train_manifest`; a relative path starts at the mixture file."""
    name: str = ""
    """What reports, logs and ids call the corpus. Default: the manifest's name without ending."""
    weight: float = 1.0
    """How often each of its recordings comes per epoch, on average; see `producing.plan.Shares`."""
    language: str = ""
    """Of rows that name none. Empty: the run's."""
    task: str = ""
    """The same for transcribe and translate."""
    format: str = ""
    """As `data.format`."""
    audio_column: str = ""
    """As `data.audio_column`, which it takes the place of."""
    text_column: str = ""
    """As `data.text_column`, which it takes the place of."""

    def settings(self, data: DataConfig) -> DataConfig:
        """The settings by which this corpus is read."""
        audio, text = self.audio_column or data.audio_column, self.text_column or data.text_column
        return dataclasses.replace(data, format=self.format, audio_column=audio, text_column=text)


KEYS = tuple(each.name for each in dataclasses.fields(Entry))


@dataclass(frozen=True)
class MixedCorpus:
    """A corpus of a mixture that has been found."""

    entry: Entry
    corpus: Corpus
    folder: str
    """Where its audio paths start, relative to the mixture's root where that is possible; empty: there."""


@dataclass(frozen=True)
class Mixture:
    """All corpora of a mixture file."""

    name: str
    """For messages."""
    root: str
    """Folder or URL of the mixture file."""
    corpora: tuple[MixedCorpus, ...]

    @property
    def content(self) -> str:
        """Identity of all corpora, whatever their weights: another weight needs no other scan."""
        parts = []
        for each in self.corpora:
            entry = {**dataclasses.asdict(each.entry), "manifest": "", "weight": 0, "format": ""}
            parts.append([entry, each.folder, each.corpus.content])
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the corpora, in their order."""
        return tuple(each.entry.weight for each in self.corpora)

    def index(self, data: DataConfig) -> MixtureTable:
        """See `Corpus.index`."""
        tables, first_row = [], 0
        for each in self.corpora:
            where = f"{self.name}, corpus {each.entry.name}"
            table = each.corpus.index(each.entry.settings(data))
            if data.streaming and table.blocks is not None:
                raise ManifestError(
                    f"{where}: data.streaming is for one data set in Parquet, not for a mixture: leave it out, or "
                    "train on this one alone"
                )
            if not table.rows:
                raise ManifestError(f"{where}: {each.corpus.name} holds no rows")
            tables.append(MixedTable(each.entry, each.folder, table, first_row))
            first_row += table.rows
        return MixtureTable(tuple(tables))


@dataclass(frozen=True)
class MixedTable:
    """The table of one corpus of a mixture."""

    entry: Entry
    folder: str
    table: Table
    first_row: int
    """Rows of the mixture before it."""

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows of the mixture, as those of this corpus."""
        entry = self.entry
        for row in self.table.read(start - self.first_row, stop - self.first_row):
            yield dataclasses.replace(
                row,
                audio=join(self.folder, row.audio) if self.folder and row.audio else row.audio,
                id=f"{entry.name}/{row.id or row.name}",
                language=row.language or entry.language,
                task=row.task or entry.task,
            )


@dataclass(frozen=True)
class MixtureTable:
    """The tables of all corpora, one behind the other."""

    tables: tuple[MixedTable, ...]
    blocks: None = None
    notes: tuple[str, ...] = field(init=False)
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        notes = (f"{each.entry.name}: {note}" for each in self.tables for note in each.table.notes)
        object.__setattr__(self, "notes", tuple(notes))
        object.__setattr__(self, "rows", self.tables[-1].first_row + self.tables[-1].table.rows)

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, none of them of two corpora."""
        for each in self.tables:
            for start, stop in each.table.tasks():
                yield each.first_row + start, each.first_row + stop

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows `start` to `stop` - 1, as `tasks` gave them."""
        number = bisect_right([each.first_row for each in self.tables], start) - 1
        return self.tables[number].read(start, stop)


def mixture_format(find: Callable[[str, str], Any], open_corpus: Callable[[str, DataConfig], Corpus]) -> Format:
    """The format of mixture files.

    Args:
        find: finds the format of a corpus by its path and the format's name (`corpus.formats.find_manifest`).
        open_corpus: opens a corpus of any format (`corpus.formats.open_corpus`).
    """

    def recognises(path: str) -> bool:
        if not path.lower().endswith(ENDINGS):
            return False
        if not is_url(path):  # mistakes in it are told at once
            for number, entry in enumerate(read_entries(path), 1):
                with _naming(path, number, entry):
                    find(entry.manifest, entry.format)
        return True

    def open_mixture(path: str, data: DataConfig) -> Mixture:
        root, corpora = _root(path), []
        for number, entry in enumerate(read_entries(path, data.retry_timeout_s), 1):
            with _naming(path, number, entry):
                corpus = open_corpus(entry.manifest, entry.settings(data))
            corpora.append(MixedCorpus(entry, corpus, _relative(corpus.root, root)))
        return Mixture(without_secrets(path), root, tuple(corpora))

    return Format(NAME, "a .yaml list of several corpora", recognises, open_mixture)


def read_entries(path: str, retry_timeout_s: float = 0.0) -> list[Entry]:
    """Reads a mixture file.

    Args:
        path: of the file; may be a URL.
        retry_timeout_s: how long to ask a store that does not answer.

    Returns:
        Its entries; their manifests are absolute paths or URLs.

    Raises:
        ManifestError: an entry can't be used; one line says which, and why.
        SourceError: the URL can't be reached.
    """
    name, values = without_secrets(path), _load(path, retry_timeout_s)
    if not isinstance(values, list) or not values:
        raise ManifestError(
            f"{name} is no mixture of corpora: expected a list, each entry with the keys {', '.join(KEYS)} as needed"
        )
    entries: list[Entry] = []
    for number, value in enumerate(values, 1):
        entry = _read_entry(f"{name}, entry {number}", value)
        if entry.name in (earlier.name for earlier in entries):
            raise ManifestError(
                f"{name}, entry {number}: a second corpus called {entry.name!r}: give each its own name"
            )
        entries.append(dataclasses.replace(entry, manifest=_absolute(entry.manifest, path)))
    return entries


def _load(path: str, retry_timeout_s: float) -> Any:
    """The content of a YAML file in which every value is text: `no` is the code of Norwegian, not False."""
    import yaml

    try:
        content = read_file(path, retry_timeout_s) if is_url(path) else Path(path).read_bytes()
        return yaml.load(content.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read {without_secrets(path)} as YAML: {one_line(error)}") from error
    except OSError as error:
        raise ManifestError(f"cannot read {without_secrets(path)}: {error.strerror or one_line(error)}") from error


def _read_entry(where: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is {value!r}: expected manifest: PATH, name: NAME, and so on")
    if unknown := [key for key in value if key not in KEYS]:
        raise ManifestError(f"{where} has a key {unknown[0]!r}: expected some of {', '.join(KEYS)}")
    if wrong := [key for key, text in value.items() if not isinstance(text, str)]:
        raise ManifestError(f"{where}: {wrong[0]} is {value[wrong[0]]!r}: expected a single value")
    if not value.get("manifest"):
        raise ManifestError(f"{where} names no manifest: add manifest: PATH")
    if value["manifest"].lower().endswith(ENDINGS) or value.get("format") == NAME:
        raise ManifestError(f"{where}: {value['manifest']} is a mixture itself: list its corpora here instead")
    name = value.get("name") or PurePosixPath(value["manifest"]).stem
    if "/" in name or not name.isprintable() or not name:
        raise ManifestError(f"{where}: name is {name!r}: expected printable characters without /")
    if value.get("task", "") not in ("", *TASKS):
        raise ManifestError(f"{where} ({name}): task is {value['task']!r}: expected {' or '.join(TASKS)}")
    weight = _read_weight(f"{where} ({name})", value.get("weight", "1"))
    return Entry(**{**value, "name": name, "weight": weight})


def _read_weight(where: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ManifestError(
            f"{where}: weight is {text!r}: expected a number above 0, 1 for each recording once per epoch"
        )
    return weight


@contextmanager
def _naming(path: str, number: int, entry: Entry) -> Iterator[None]:
    """Errors of a corpus name its entry."""
    try:
        yield
    except ManifestError as error:
        raise ManifestError(f"{without_secrets(path)}, entry {number} ({entry.name}): {error}") from error


def _root(path: str) -> str:
    """Folder or URL of a mixture file. Without symbolic links, because paths may lead out of it (../other/a.wav)."""
    if is_url(path):
        return urlsplit(path)._replace(query="", fragment="").geturl().rpartition("/")[0]
    return os.path.dirname(os.path.realpath(path))


def _absolute(manifest: str, path: str) -> str:
    manifest = os.path.expanduser(manifest)
    found = join(_root(path), manifest)
    return found if is_url(found) else posixpath.normpath(found)


def _relative(root: str, mixture_root: str) -> str:
    """The folder of a corpus as seen from the mixture's: two machines with the same tree have the same stream."""
    if is_url(root):
        return "" if root == mixture_root else root.removeprefix(mixture_root + "/")
    if is_url(mixture_root):
        return root
    folder = os.path.relpath(os.path.realpath(root), mixture_root)
    return "" if folder == os.curdir else folder
