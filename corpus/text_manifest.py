"""Manifests in CSV, TSV or JSON lines, here or at a URL."""

from __future__ import annotations

import hashlib
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from common.files import digest_file
from common.redaction import without_secrets
from config import HUB_MANIFEST, DataConfig
from corpus.delimited import index_delimited
from corpus.json_lines import index_json_lines
from corpus.manifest import Format, ManifestError, Table
from corpus.text_lines import plain_file
from storage.remote_files import is_file, is_url, read_file

FILE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
ENDINGS = tuple(ending + packed for ending in (".csv", ".tsv", ".jsonl", ".json") for packed in ("", ".gz"))
"""Of files that are manifests."""


@dataclass(frozen=True)
class TextManifest:
    """A manifest in CSV, TSV or JSON lines."""

    name: str
    """For messages."""
    root: str
    """Relative audio paths start at this folder or URL."""
    file: Path
    """The file, or a copy of what lies at a URL."""
    content: str
    """Identity of its content."""

    def index(self, data: DataConfig) -> Table:
        """Finds its rows and columns."""
        file = plain_file(self.file, self.name, self.content, data)
        if file.suffix.lower() in (".csv", ".tsv"):
            return index_delimited(file, self.name, data)
        return index_json_lines(file, self.name, data)


def _recognises(path: str) -> bool:
    if is_url(path):
        return not path.endswith(".parquet") and not HUB_MANIFEST.fullmatch(path)
    if os.path.isdir(path):
        return any((Path(path) / name).is_file() for name in FILE_NAMES)
    return path.lower().endswith(ENDINGS)


def open_text_manifest(manifest: str, data: DataConfig) -> TextManifest:
    """Identifies the content of a manifest, and copies it here when it is at a URL.

    Args:
        manifest: what `find_manifest` gave, not in Parquet.
        data: the cache folder, and how long to ask a store that does not answer.

    Raises:
        ManifestError: there is none at this URL.
        SourceError: the URL can't be reached.
    """
    if not is_url(manifest):
        path = Path(manifest)
        if path.is_dir():
            path = next(path / name for name in FILE_NAMES if (path / name).is_file())
            manifest = str(path)
        return TextManifest(manifest, os.path.abspath(path.parent), path, digest_file(path))
    name = posixpath.basename(urlsplit(manifest).path)
    try:
        if not name.lower().endswith(ENDINGS):
            folder = manifest.rstrip("/")
            candidates = (f"{folder}/{name}" for name in FILE_NAMES)
            found = next((file for file in candidates if is_file(file, data.retry_timeout_s)), None)
            if not found:
                raise ManifestError(
                    f"{without_secrets(folder)} holds no {' or '.join(FILE_NAMES)}; Parquet there is named by a "
                    f"pattern: {without_secrets(folder)}/*.parquet"
                )
            return open_text_manifest(found, data)
        content = read_file(manifest, data.retry_timeout_s)
    except FileNotFoundError as error:
        raise ManifestError(
            f"no manifest at {error}: set --data.train_manifest (or --data.eval_manifest) to yours"
        ) from error
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    copy = Path(data.cache_dir) / "manifests" / digest / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(content)
    root = urlsplit(manifest)._replace(query="", fragment="").geturl().rpartition("/")[0]
    return TextManifest(without_secrets(manifest), root, copy, digest)


TEXT = Format("text", "a .csv, .tsv or .jsonl file, or a folder with a metadata.csv", _recognises, open_text_manifest)
