"""All formats of corpora, and which of them a path is. A further one is a file of its own and a line here."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from common.redaction import without_secrets
from config import HUB_MANIFEST, DataConfig
from corpus.common_voice import COMMON_VOICE
from corpus.kaldi import KALDI
from corpus.lhotse_cuts import LHOTSE
from corpus.librispeech import LIBRISPEECH
from corpus.ljspeech import LJSPEECH
from corpus.manifest import Corpus, Format, ManifestError
from corpus.openslr import OPENSLR
from corpus.parquet_manifest import PARQUET, WILDCARDS
from corpus.saved_dataset import SAVED_DATASET
from corpus.stm import STM
from corpus.subtitles import SUBTITLES
from corpus.tar_shards import NEMO_TARRED, WEB_DATASET
from corpus.text_beside import TEXT_BESIDE
from corpus.text_manifest import TEXT
from storage.remote_files import is_url, local_path

FORMATS: tuple[Format, ...] = (
    COMMON_VOICE, LJSPEECH, OPENSLR, LHOTSE, NEMO_TARRED, TEXT, PARQUET, SAVED_DATASET, KALDI, LIBRISPEECH, STM,
    WEB_DATASET, SUBTITLES, TEXT_BESIDE,
)  # fmt: skip
"""The first that recognises a path opens it."""
FOLDERS_LOOKED_AT = 20


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
    try:
        for each in FORMATS:
            if each.name == format_name or (not format_name and each.recognises(path)):
                return path, each
    except OSError as error:
        raise _cannot_read(path, error) from error
    if format_name:
        names = ", ".join(each.name for each in FORMATS)
        raise ManifestError(f"data.format is {format_name!r}: expected one of {names}, or nothing to have it found out")
    known = "; ".join(each.expects for each in FORMATS)
    kind = "the folder holds none" if os.path.isdir(path) else "it is none"
    raise ManifestError(f"{without_secrets(path)} is no corpus, {kind} of: {known}{_hint(path)}")


def _hint(path: str) -> str:
    """What is in a folder that is no corpus itself."""
    if not os.path.isdir(path):
        return ""
    if any(Path(path, "data").glob("*.parquet")):
        return f". It looks like a copy of a Hub repository: name a split of it, hf://{os.path.abspath(path)}:train"
    inside = sorted(each.path for each in os.scandir(path) if each.is_dir())[:FOLDERS_LOOKED_AT]
    found = [folder for folder in inside if any(each.recognises(folder) for each in FORMATS)]
    return f". But these are: {', '.join(found[:4])}; name one of them" if found else ""


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
        raise _cannot_read(found, error) from error


def _cannot_read(path: str, error: OSError) -> ManifestError:
    return ManifestError(f"cannot read {error.filename or path}: {error.strerror or error}")
