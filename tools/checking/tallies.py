"""What is kept of the recordings of a corpus: a few numbers of each, 32 bytes, and what was counted.

No object per recording: a corpus of 693,000 takes 22 MB.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

EXAMPLES = 3
ROW = np.dtype(
    [("duration_s", "f4"), ("audio", "u8"), ("transcript", "u8"), ("tokens", "i4"), ("queue", "i4"), ("language", "i4")]
)  # fmt: skip
"""What is kept of a recording: duration (NaN: the file can't be read), digests of audio (0: not looked at) and
transcript, label tokens, bytes that its sample takes in Redis, and the number of its language and task."""


@dataclass
class Examples:
    """How many recordings something was found in, and the first few of them."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)
    """Index among the usable recordings, and details."""

    def add(self, index: int, details: str = "") -> None:
        """Counts a recording."""
        self.count += 1
        if len(self.first) < EXAMPLES:
            self.first.append((index, details))

    def merge(self, other: Examples) -> None:
        """Counts those of later recordings."""
        self.count += other.count
        self.first = [*self.first, *other.first][:EXAMPLES]


@dataclass
class Survey:
    """What was found in some or all usable recordings of a corpus."""

    rows: np.ndarray
    """`ROW` of each recording, in order."""
    decoded: int = 0
    """Recordings that were decoded, or could not be."""
    audio_formats: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Recordings by sampling rate in Hz and number of channels."""
    languages: list[tuple[str, str]] = field(default_factory=list)
    """Language and task of each number in `rows`; empty: the run's."""
    characters: Counter[str] = field(default_factory=Counter)
    """Recordings in whose transcript a character stands."""
    first_seen: dict[str, int] = field(default_factory=dict)
    """Index of the first of them."""
    findings: dict[str, Examples] = field(default_factory=dict)
    """By name, see `audio_facts`."""
    failures: dict[str, Examples] = field(default_factory=dict)
    """Recordings that the scan takes and that can't be used, by kind of reason."""

    def merge(self, other: Survey, rows: np.ndarray) -> None:
        """Adds what was found in later recordings; `rows`: where their numbers go."""
        rows[:] = other.rows
        for number, language in enumerate(other.languages):
            if language not in self.languages:
                self.languages.append(language)
            rows["language"][other.rows["language"] == number] = self.languages.index(language)
        self.decoded += other.decoded
        self.audio_formats.update(other.audio_formats)
        self.characters.update(other.characters)
        self.first_seen = {**other.first_seen, **self.first_seen}
        for mine, theirs in ((self.findings, other.findings), (self.failures, other.failures)):
            for name, examples in theirs.items():
                mine.setdefault(name, Examples()).merge(examples)
