"""All formats of corpora, and which of them a path is. A further one is a file of its own and a line here."""

from __future__ import annotations

import glob
import os
import posixpath
from pathlib import Path
from urllib.parse import urlsplit

from common.redaction import without_secrets
from config import HUB_MANIFEST, DataConfig
from corpus.manifest import Corpus, Format, ManifestError
from corpus.mixture import mixture_format
from corpus.parquet_manifest import PARQUET, WILDCARDS
from corpus.text_manifest import TEXT
from storage.remote_files import is_url, local_path


def find_manifest(path: str, format_name: str = "") -> tuple[str, Format]:
    """The corpus that a path means. Looks at this machine's disks only.

    Args:
        path: see `DataConfig.train_manifest`.
        format_name: `DataConfig.format`; empty: by looking.

    Returns:
        The path as its format opens it, and the format.

    Raises:
        ManifestError: there is none, or it is of no format that is known.
    """
    path = local_path(path)
    if not is_url(path) and not HUB_MANIFEST.fullmatch(path):
        path = str(Path(path).expanduser())
        _check_local(path)
    for each in FORMATS:
        if each.name == format_name or (not format_name and each.recognises(path)):
            return path, each
    if format_name:
        names = ", ".join(each.name for each in FORMATS)
        raise ManifestError(f"data.format is {format_name!r}: expected one of {names}, or nothing to have it found out")
    known = "; ".join(each.expects for each in FORMATS)
    if is_url(path):
        name = without_secrets(path)
        folder = posixpath.dirname(urlsplit(path).path) or "/"
        raise ManifestError(f"{name} is no manifest: expected one of {known}; or a pattern, {folder}/*.parquet")
    kind = "the folder holds none" if Path(path).is_dir() else "the file is none"
    raise ManifestError(f"{path} is no corpus, {kind} of: {known}")


def _check_local(path: str) -> None:
    """Refuses a path at which there is neither a file, a folder nor, for a pattern, anything."""
    if os.path.isfile(path) or os.path.isdir(path):
        return
    if os.path.exists(path):
        raise ManifestError(f"{path} is a pipe or a device: expected a file or a folder, it is read several times")
    if not any(sign in path for sign in WILDCARDS) or not glob.glob(path, recursive=True):
        raise ManifestError(f"no manifest at {path}: set --data.train_manifest (or --data.eval_manifest) to yours")


def open_corpus(path: str, data: DataConfig) -> Corpus:
    """Finds and identifies the corpus at a path. Runs in another process where drivers would take memory.

    Raises:
        ManifestError: there is none, or it can't be read.
        SourceError: it can't be reached.
    """
    found, kind = find_manifest(path, data.format)
    try:
        return kind.open(found, data)
    except OSError as error:
        raise ManifestError(f"cannot read {error.filename or found}: {error.strerror or error}") from error


FORMATS: tuple[Format, ...] = (mixture_format(find_manifest, open_corpus), TEXT, PARQUET)
"""The first that recognises a path opens it."""
