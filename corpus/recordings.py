"""The usable recordings of a manifest, read back from what a scan has left on disk.

A manifest of 693,000 rows takes no memory here: a recording is read when it is asked for, from a file of JSON lines
with an index of offsets.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from audio.part import WHOLE, Part
from corpus.manifest import ManifestRow
from storage.remote_files import join

OFFSETS = struct.Struct("=qq")
"""Begin and end of a recording's line: two int64 that stand next to each other."""
DURATION = struct.Struct("=f")
"""How long a recording is by the manifest, in seconds: a float32, NaN where it does not say."""


@dataclass(frozen=True)
class Recording:
    """A usable row of a manifest."""

    row: int
    """Its row in the manifest, from 0."""
    id: str
    audio: str
    """Locator of the audio: a path, a URL or a place in a Parquet file, see `audio_sources`."""
    transcript: str
    """What is said, cleaned."""
    part: Part = WHOLE
    """Which part of the audio it is."""
    language: str = ""
    """As Whisper names it (Bengali or bn). Empty: the run's."""
    task: str = ""
    """transcribe or translate. Empty: the run's."""
    claimed_duration_s: float | None = None
    """How long it is by the manifest, in seconds; None: the manifest does not say."""


def encode_recording(number: int, row_id: str, row: ManifestRow) -> bytes:
    """A usable row as a line of `rows.jsonl`: [row, id, audio, transcript], and {…} when there is more to say.

    The identity of a stream rests on these bytes: a row that uses nothing new must look as it did before.
    """
    values: list[Any] = [number, row_id, row.audio, row.transcript]
    if row.part is not WHOLE or row.language or row.task:
        values += _more(row)
    return _encode(values).encode() + b"\n"


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _more(row: ManifestRow) -> list[dict[str, Any]]:
    """What a row says besides, in a list; an empty list: nothing."""
    assert isinstance(row.part, Part)
    more = {
        "offset_s": row.part.offset_s or None, "duration_s": row.part.duration_s, "channel": row.part.channel,
        "language": row.language or None, "task": row.task or None,
    }  # fmt: skip
    more = {name: value for name, value in more.items() if value is not None}
    return [more] if more else []


def _decode_recording(line: bytes, root: str) -> Recording:
    row, row_id, audio, transcript, *more = json.loads(line)
    if not more:
        return Recording(row, row_id, join(root, audio), transcript)
    values = more[0]
    part = Part(values.get("offset_s", 0.0), values.get("duration_s"), values.get("channel"))
    language, task = values.get("language", ""), values.get("task", "")
    return Recording(row, row_id, join(root, audio), transcript, part, language, task)


class Recordings:
    """The usable recordings of a manifest, in its order, read from disk when asked for. Cheap to pickle."""

    def __init__(self, folder: Path, root: str) -> None:
        """
        Args:
            folder: what a scan left in the cache.
            root: folder or URL at which relative audio paths start.
        """
        self._folder, self._root = folder, root
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._length, self._first_offset = len(offsets) - 1, offsets.offset
        # Read where they are needed, not mapped: the pages would count as this process's memory, 8 bytes a row.
        self._index = os.open(folder / "offsets.npy", os.O_RDONLY)
        self._file = os.open(folder / "rows.jsonl", os.O_RDONLY)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.digest: str = summary["digest"]
        """Identity of the content of the manifest and of the choice of rows."""
        self.hours: float = summary["hours"]
        """Duration of all usable recordings together."""
        self.rejected: int = summary["rejected"]
        """Rows that can't be used."""
        self.rejected_file = folder / "rejected.jsonl"
        """Those rows, a JSON line for each."""
        durations = folder / "claimed_durations.f32"
        self._durations = os.open(durations, os.O_RDONLY) if durations.exists() else None
        blocks = folder / "blocks.npy"
        self.blocks: np.ndarray | None = np.load(blocks) if blocks.exists() else None
        """int64 `[row groups, 2]`: usable recordings and bytes of each row group, of a data set in Parquet."""

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Recording:
        if not 0 <= index < self._length:
            raise IndexError(f"recording {index} of {self._length}")
        begin, end = OFFSETS.unpack(os.pread(self._index, OFFSETS.size, self._first_offset + 8 * index))
        recording = _decode_recording(os.pread(self._file, end - begin, begin), self._root)
        if self._durations is None:
            return recording
        claimed_s = DURATION.unpack(os.pread(self._durations, DURATION.size, DURATION.size * index))[0]
        return recording if math.isnan(claimed_s) else replace(recording, claimed_duration_s=claimed_s)

    def __reduce__(self) -> tuple[type[Recordings], tuple[Path, str]]:
        return Recordings, (self._folder, self._root)

    def __del__(self) -> None:
        for name in ("_index", "_file", "_durations"):
            if getattr(self, name, None) is not None:
                os.close(getattr(self, name))
