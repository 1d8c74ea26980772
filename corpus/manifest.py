"""A manifest: the file that names the recordings and their transcripts. How it is found, its columns and its rows."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from config import HUB_MANIFEST, DataConfig
from storage.remote_files import is_url, local_path

AUDIO_COLUMNS = ("audio", "file_name", "path")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
WILDCARDS = "*?["
ROWS_PER_TASK = 2048
"""Rows that one task of a scan judges."""


class ManifestError(UserError):
    """A manifest that can't be read, lacks a column, or holds too few usable recordings."""


@dataclass(frozen=True)
class Columns:
    """Which column of a manifest is what."""

    audio: str
    text: str
    duration: str | None
    id: str | None


@dataclass(frozen=True)
class ManifestRow:
    """A row of a manifest, nothing checked yet."""

    audio: str
    """A path or URL, or a locator of bytes in Parquet, relative to the manifest's folder or not; may be empty."""
    name: str
    """What reports call the audio."""
    text: Any
    duration: Any
    id: Any


def find_manifest(path: str) -> str:
    """The manifest that a path means: itself, or the metadata file of a folder. Looks at this machine's disks only.

    Raises:
        ManifestError: there is none.
    """
    path = local_path(path)
    if is_url(path):
        return path
    given = Path(path).expanduser()
    if given.is_dir():
        for name in FILE_NAMES:
            if (given / name).is_file():
                return str(given / name)
        if is_parquet(str(given)):
            return str(given)
        raise ManifestError(f"the folder {given} holds no {' or '.join(FILE_NAMES)} and no *.parquet")
    if not given.is_file() and not (any(sign in path for sign in WILDCARDS) and glob.glob(str(given), recursive=True)):
        raise ManifestError(f"no manifest at {given}: set --data.train_manifest (or --data.eval_manifest) to yours")
    if given.suffix.lower() not in (*ENDINGS, ".parquet"):
        raise ManifestError(
            f"{given} is no manifest: expected a .csv, .tsv or .jsonl file, or a folder with one, or .parquet files"
        )
    return str(given)


def is_parquet(manifest: str) -> bool:
    """Whether a manifest that was found is in Parquet, judged by its name, and for a folder by what is in it."""
    if HUB_MANIFEST.fullmatch(manifest) or manifest.endswith(".parquet"):
        return True
    return not is_url(manifest) and os.path.isdir(manifest) and any(Path(manifest).glob("*.parquet"))


def pick_columns(manifest: str, columns: Sequence[str], data: DataConfig) -> Columns:
    """Finds the columns that are configured, or else the usual ones.

    Raises:
        ManifestError: there is no such column.
    """
    return Columns(
        audio=_pick_column(manifest, columns, data.audio_column, AUDIO_COLUMNS, "audio"),
        text=_pick_column(manifest, columns, data.text_column, TEXT_COLUMNS, "text"),
        duration="duration" if "duration" in columns else None,
        id="id" if "id" in columns else None,
    )


def _pick_column(manifest: str, columns: Sequence[str], wanted: str, usual: tuple[str, ...], what: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in columns:
            return name
    expected = repr(wanted) if wanted else " or ".join(usual)
    raise ManifestError(
        f"{manifest} has no column {expected}: it has {', '.join(columns)}; name yours with --data.{what}_column"
    )
