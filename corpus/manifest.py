"""What a corpus is to the rest of the code: a name, an identity, and a table of rows. Every format gives this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from audio.audio_file import RecordingError
from audio.part import WHOLE, Part
from common.errors import UserError
from config import DataConfig

ROWS_PER_TASK = 2048
"""Rows that one task of a scan judges."""


class ManifestError(UserError):
    """A manifest that can't be read, lacks a column, or holds too few usable recordings."""


@dataclass(slots=True)  # not frozen: that takes three times as long to make, and there are millions
class ManifestRow:
    """A row of a manifest: its values have the right types, nothing else is checked yet."""

    audio: str
    """A path or URL, or a locator of bytes inside another file, relative to the manifest's folder or not; may be
    empty."""
    name: str
    """What reports call the audio."""
    transcript: str | RecordingError
    """What is said, cleaned (`corpus.transcripts`); or why the value is no text."""
    id: str = ""
    """The recording's own name; empty: it has none."""
    part: Part | RecordingError = WHOLE
    """Which part of the audio the recording is; or why the values do not tell."""
    duration_s: float | None = None
    """Its duration as the manifest has it, in seconds; None: it has to be measured."""
    language: str = ""
    """As Whisper names it (Bengali or bn). Empty: the run's."""
    task: str = ""
    """transcribe or translate. Empty: the run's."""


class Table(Protocol):
    """The rows of a corpus. Cheap to pickle: the processes of a scan get it."""

    @property
    def rows(self) -> int:
        """How many there are."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the log should say of how the corpus was read, such as the separator that was found."""

    @property
    def blocks(self) -> np.ndarray | None:
        """int64 `[blocks, 2]`: rows and bytes of audio of each block that is unpacked as a whole; None: there are none.

        A data set that is streamed is shuffled within a window of such blocks.
        """

    def tasks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows (start, stop), each enough for one task of a scan, all rows in order."""

    def read(self, start: int, stop: int) -> Iterator[ManifestRow]:
        """Rows `start` to `stop` - 1, a range that `tasks` gave.

        Raises:
            ManifestError: the manifest is damaged there.
            SourceError: its store can't be reached.
        """


class Corpus(Protocol):
    """A corpus that has been found and identified. Cheap to pickle."""

    @property
    def name(self) -> str:
        """For messages; without secrets."""

    @property
    def root(self) -> str:
        """Relative audio paths start at this folder or URL."""

    @property
    def content(self) -> str:
        """Identity of the content, wherever it lies."""

    def index(self, data: DataConfig) -> Table:
        """Its rows as a table that needs no memory. May take minutes.

        Raises:
            ManifestError: it can't be parsed, or a column is missing.
            SourceError: its store can't be reached.
        """


@dataclass(frozen=True)
class Format:
    """One way to keep a corpus. `corpus.formats` lists them all."""

    name: str
    """Value of data.format that names it."""
    expects: str
    """What it looks like, for messages and help."""
    recognises: Callable[[str], bool]
    """Whether a path (of something that exists), pattern or URL is such a corpus. It may look, but not for long."""
    open: Callable[[str, DataConfig], Corpus]
    """Finds and identifies the corpus at a path that it recognises, or that data.format says is one.

    Raises ManifestError (it is damaged or none), SourceError (it can't be reached) or OSError.
    """
