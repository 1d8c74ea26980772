"""Finds the Parquet files of a data set on the Hugging Face Hub."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from common.errors import one_line
from config import HUB_MANIFEST
from corpus.manifest import ManifestError
from storage.remote_files import network_errors


def hub_files(path: str) -> list[str]:
    """The Parquet files of splits of a data set on the Hub. `datasets` knows how repositories are laid out.

    Args:
        path: hf://org/name@revision/config:split, or hf:///folder:split.

    Raises:
        ManifestError: there are none, or the Hub can't be reached.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    match = HUB_MANIFEST.fullmatch(path)
    assert match  # the configuration has been checked
    revision = unquote(match["revision"]) if match["revision"] else None
    try:
        builder = datasets.load_dataset_builder(match["folder"] or match["name"], match["config"], revision=revision)
    except (DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise ManifestError(f"cannot find {path}: {one_line(error)}") from error
    except network_errors() as error:
        raise ManifestError(
            f"cannot reach {path}: {one_line(error)}; without network give a folder or Parquet files"
        ) from error
    found = builder.config.data_files or {}
    files: list[str] = []
    for split in match["split"].split("+"):
        if split not in found:
            raise ManifestError(
                f"{path} has no split {split!r}: it has {', '.join(map(str, found)) or 'no data files'}"
            )
        files += found[split]
    if wrong := [file for file in files if not file.endswith(".parquet")]:
        raise ManifestError(
            f"{path} is not in Parquet ({posixpath.basename(wrong[0])}): the Hub keeps a copy in Parquet of most data "
            f"sets, hf://{match['name'] or 'org/name'}@refs%2Fconvert%2Fparquet:{match['split']}"
        )
    return files
