"""Data sets in Parquet, with the audio's bytes inside: local files, URLs, or the Hugging Face Hub."""

from __future__ import annotations

import glob
import os
import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.redaction import without_secrets
from config import HUB_MANIFEST, DataConfig
from corpus.hub_files import hub_files
from corpus.manifest import Format, ManifestError
from corpus.parquet_table import ParquetManifest
from storage.remote_files import asking_again, is_url, list_files
from storage.row_group_cache import digest_footer, read_footer

WILDCARDS = "*?["
FOOTERS_AT_ONCE = 16


def _recognises(path: str) -> bool:
    if HUB_MANIFEST.fullmatch(path) or path.endswith(".parquet"):
        return True
    return not is_url(path) and os.path.isdir(path) and any(Path(path).glob("*.parquet"))


def open_parquet(path: str, data: DataConfig) -> ParquetManifest:
    """Finds the files of a data set, and identifies them by their footers.

    Args:
        path: a file, a folder, a pattern with wildcards; a URL of these; or hf://org/name:split.
        data: says how long to ask a store that does not answer.

    Raises:
        ManifestError: there are none, or one is no Parquet file.
        SourceError: they can't be reached.
    """
    files = hub_files(path) if HUB_MANIFEST.fullmatch(path) else _list_files(path, data)
    if not files:
        raise ManifestError(f"no Parquet files at {without_secrets(path)}")
    protocol = files[0].partition("://")[0] + "://" if is_url(files[0]) else ""
    root = protocol + posixpath.commonpath([posixpath.dirname(file.removeprefix(protocol)) for file in files])
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = threads.map(lambda file: _identify(file, data.retry_timeout_s), files)
        names = tuple(posixpath.relpath(file.removeprefix(protocol), root.removeprefix(protocol)) for file in files)
        return ParquetManifest(without_secrets(path), root, names, tuple(footers))


def _list_files(path: str, data: DataConfig) -> list[str]:
    has_wildcards = any(character in path for character in WILDCARDS)
    if is_url(path):
        return list_files(path, data.retry_timeout_s) if has_wildcards else [path]
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return sorted(glob.glob(os.path.join(glob.escape(path), "*.parquet")))
    return [path] if os.path.exists(path) or not has_wildcards else sorted(glob.glob(path, recursive=True))


def _identify(file: str, retry_timeout_s: float) -> str:
    try:
        footer = asking_again(file, retry_timeout_s, lambda: read_footer(file)) if is_url(file) else read_footer(file)
    except FileNotFoundError as error:
        raise ManifestError(
            f"no manifest at {without_secrets(file)}: set --data.train_manifest (or --data.eval_manifest) to yours"
        ) from error
    except (OSError, ValueError) as error:
        raise ManifestError(f"cannot read {without_secrets(file)} as Parquet: {error}") from error
    return digest_footer(footer)


PARQUET = Format("parquet", "Parquet files, a folder of them, or hf://org/name:split", _recognises, open_parquet)
