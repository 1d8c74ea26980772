"""Which column of a manifest is what, and a row of values as a `ManifestRow`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audio.audio_file import RecordingError
from audio.part import WHOLE, Part
from common.redaction import without_secrets
from config import DataConfig
from corpus.manifest import ManifestError, ManifestRow
from corpus.transcripts import clean_transcript

AUDIO_COLUMNS = ("audio", "file_name", "path", "audio_filepath")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
OFFSET_COLUMNS = ("offset", "start")
OPTIONAL_COLUMNS = ("duration", "id", *OFFSET_COLUMNS, "end", "channel", "language", "task")
OPTIONAL = frozenset(OPTIONAL_COLUMNS)
PLAIN = frozenset({"duration", "id"})
"""Optional columns of recordings that are whole files in the run's language."""
NO_VALUE = frozenset({"", "nan", "none", "null", "na", "n/a"})
"""What stands in a column of numbers where there is none."""
_SURROGATE = re.compile("[\ud800-\udfff]")
TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class Columns:
    """Which column of a manifest is the audio, and which the transcript. The others have fixed names."""

    audio: str
    text: str


def pick_columns(manifest: str, columns: Sequence[str], data: DataConfig) -> Columns:
    """Finds the columns that are configured, or else the usual ones, in any case (Audio, TEXT).

    Raises:
        ManifestError: there is no such column.
    """
    return Columns(
        audio=_pick_column(manifest, columns, data.audio_column, AUDIO_COLUMNS, "audio"),
        text=_pick_column(manifest, columns, data.text_column, TEXT_COLUMNS, "text"),
    )


def _pick_column(manifest: str, columns: Sequence[str], wanted: str, usual: tuple[str, ...], what: str) -> str:
    if wanted in columns:
        return wanted
    if not wanted:
        for names in ({name: name for name in columns}, {name.casefold(): name for name in reversed(columns)}):
            for name in usual:
                if name in names:
                    return names[name]
    expected = repr(wanted) if wanted else " or ".join(usual)
    raise ManifestError(
        f"{manifest} has no column {expected}: it has {', '.join(columns)}; name yours with --data.{what}_column"
    )


def read_row(
    values: Mapping[str, Any], columns: Columns, data: DataConfig, audio: str = "", name: str = ""
) -> ManifestRow:
    """A row of values as what they mean.

    Args:
        values: column → value; a column may be missing.
        columns: which of them is what.
        data: says which channel is taken where the row does not.
        audio: locator of the audio when it is not what the audio column says.
        name: what reports call the audio then.
    """
    if not audio:
        audio = read_path(values.get(columns.audio))
        name = name or without_secrets(audio)
    try:
        transcript: str | RecordingError = read_text(values.get(columns.text), "transcript")
    except RecordingError as error:
        transcript = error
    more = values.keys() & OPTIONAL
    row_id = values["id"] if "id" in more else None
    row_id = "" if row_id is None else _without_surrogates(str(row_id))
    try:
        duration_s = _number(values, "duration") if "duration" in more else None
        if more <= PLAIN and data.channel < 0:
            return ManifestRow(audio, name, transcript, row_id, WHOLE, duration_s)
        part = _read_part(values, duration_s, data.channel)
        language, task = read_text(values.get("language"), "language"), _read_task(values)
    except RecordingError as error:
        return ManifestRow(audio, name, transcript, row_id, error)
    length_s = duration_s if part.duration_s is None else part.duration_s
    return ManifestRow(audio, name + part.suffix, transcript, row_id, part, length_s, language, task)


def read_path(value: Any) -> str:
    """The path in an audio column: a string, or a struct with one. Empty: there is none."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return "" if value is None else _without_surrogates(str(value))


def _without_surrogates(text: str) -> str:
    """Text that can be written: JSON may hold halves of UTF-16 pairs, which no file does."""
    return _SURROGATE.sub("?", text)


def read_text(value: Any, what: str) -> str:
    """A value as clean text; numbers are written out, and null is no text.

    Raises:
        RecordingError: it is a list, a dictionary, true or false.
    """
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise RecordingError(f"{what} is damaged: it holds half of a character (a lone surrogate)")
        return clean_transcript(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    kinds = {list: "a list", dict: "a dictionary", bool: "true or false", bytes: "bytes"}
    if type(value) in kinds:
        raise RecordingError(f"{what} is {kinds[type(value)]}, not text")
    return str(value)


def _read_task(values: Mapping[str, Any]) -> str:
    task = read_text(values.get("task"), "task")
    if task and task not in TASKS:
        raise RecordingError(f"task {task!r} is neither {' nor '.join(TASKS)}")
    return task


def _read_part(values: Mapping[str, Any], duration_s: float | None, default_channel: int) -> Part:
    """The part of the file that the columns offset (or start) and duration or end, and channel, name."""
    channel = _number(values, "channel")
    if channel is not None and (channel < 0 or channel != int(channel)):
        raise RecordingError(f"channel {values['channel']!r} is not a whole number from 0")
    number = int(channel) if channel is not None else default_channel if default_channel >= 0 else None
    offsets = [offset for column in OFFSET_COLUMNS if (offset := _number(values, column)) is not None]
    offset_s, end_s = (offsets[0] if offsets else None), _number(values, "end")
    if offset_s is None and end_s is None:
        return WHOLE if number is None else Part(channel=number)
    offset_s = offset_s or 0.0
    if duration_s is None and end_s is not None:
        duration_s = end_s - offset_s
    if offset_s < 0 or (duration_s is not None and duration_s <= 0):
        end = "the end" if duration_s is None else f"{offset_s + duration_s:g}"
        raise RecordingError(f"not a segment: from {offset_s:g} to {end} s")
    return Part(offset_s, duration_s, number)


def _number(values: Mapping[str, Any], column: str) -> float | None:
    """A number of a row; None where it does not say.

    Raises:
        RecordingError: the value is no finite number.
    """
    value = values.get(column)
    if value is None or isinstance(value, list | dict):  # a list: the times of the words, say
        return None
    if isinstance(value, str) and value.strip().casefold() in NO_VALUE:
        return None
    unit = "a number" if column == "channel" else "a number of seconds"
    try:
        number = float(value if isinstance(value, int | float) and not isinstance(value, bool) else str(value))
    except ValueError as error:
        raise RecordingError(f"{column} {value!r} is not {unit}") from error
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise RecordingError(f"{column} {value!r} is not {unit}")
    return number
