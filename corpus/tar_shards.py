"""Audio in tar files: WebDataset shards, and NeMo's tarred manifests."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import one_line
from config import DataConfig
from corpus.columns import OPTIONAL_COLUMNS, TEXT_COLUMNS
from corpus.converted import AUDIO_ENDINGS, ConvertedCorpus, convert, read_lines
from corpus.lhotse_cuts import first_row
from corpus.manifest import Format, ManifestError
from storage.file_slices import FileSlice

LARGEST_TEXT_BYTES = 2**20


def _shards(path: str) -> list[str]:
    """Tar files of a folder, of a pattern, or the one file."""
    if os.path.isdir(path):
        return sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
    return [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))


def _members(shard: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The plain files of a tar file, in order.

    Raises:
        ManifestError: it is none, or is compressed: then no member can be read by itself.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isreg():
                    yield tar, member
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
    except tarfile.TarError as error:
        raise ManifestError(
            f"cannot read {shard}: {one_line(error)}; expected a tar file that is not compressed"
        ) from error


def _key(name: str) -> tuple[str, str]:
    """A member's sample and ending, as WebDataset tells them apart: at the first dot of the file's name."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, f".{ending.lower()}"


def _is_web_dataset(path: str) -> bool:
    return any(shard.endswith(".tar") for shard in _shards(path)[:1]) if "://" not in path else False


def _web_rows(path: str, root: str, text_column: str) -> Iterator[dict[str, Any]]:
    for shard in _shards(path):
        name = os.path.relpath(shard, root)
        key, row = None, dict[str, Any]()
        for tar, member in _members(shard):
            sample, ending = _key(member.name)
            if sample.rpartition("/")[2].startswith("._") or not sample.rpartition("/")[2]:
                continue
            if sample != key:
                if "audio" in row:
                    yield row
                key, row = sample, {"id": sample}
            if ending.endswith(AUDIO_ENDINGS):
                row["audio"] = FileSlice(name, member.offset_data, member.size).locator
            elif ending in (".txt", ".json") and member.size <= LARGEST_TEXT_BYTES:
                content = tar.extractfile(member)
                row |= _texts(content.read() if content else b"", ending, text_column, f"{member.name} of {shard}")
        if "audio" in row:
            yield row


def _texts(content: bytes, ending: str, text_column: str, where: str) -> dict[str, Any]:
    """What the member beside the audio says."""
    try:
        text = content.decode("utf-8-sig")
        if ending == ".txt":
            return {"text": text}
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"cannot read {where}: {one_line(error)}") from error
    if not isinstance(values, dict):
        return {}
    names = (text_column,) if text_column else TEXT_COLUMNS
    found = next(({"text": values[name]} for name in names if name in values), {})
    return {**{name: values[name] for name in OPTIONAL_COLUMNS if name in values and name != "id"}, **found}


def _open_web_dataset(path: str, data: DataConfig) -> ConvertedCorpus:
    root = path if os.path.isdir(path) else os.path.dirname(_shards(path)[0])
    return convert(path, root, data, _web_rows(path, os.path.abspath(root), data.text_column))


def _is_nemo_tarred(path: str) -> bool:
    return {"audio_filepath", "shard_id"} <= first_row(path).keys()


def _nemo_rows(manifest: Path, text_column: str) -> Iterator[dict[str, Any]]:
    """Rows of a tarred manifest. Its audio_filepath is the member's name, its shard_id the number of the tar file."""
    texts: dict[tuple[int, str], dict[str, Any]] = {}
    for number, line in read_lines(manifest):
        try:
            row = json.loads(line)
            texts.setdefault((int(row["shard_id"]), row["audio_filepath"]), row)
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"line {number} of {manifest} is no row of a tarred manifest: {error!r}") from error
    places: dict[tuple[int, str], str] = {}
    for shard_id in sorted({shard for shard, _ in texts}):
        shard = next(iter(manifest.parent.rglob(f"audio_{shard_id}.tar")), None)
        for _, member in _members(str(shard)) if shard else ():
            name = os.path.relpath(str(shard), manifest.parent)
            places[shard_id, member.name] = FileSlice(name, member.offset_data, member.size).locator
    for key, row in texts.items():
        values = {name: row[name] for name in OPTIONAL_COLUMNS if name in row}
        name = str(values.pop("id", key[1]))
        audio = places.get(key, f"audio_{key[0]}.tar/{key[1]}")
        yield {"audio": audio, "text": row.get(text_column or "text"), "id": name, **values}


def _open_nemo_tarred(path: str, data: DataConfig) -> ConvertedCorpus:
    return convert(path, os.path.dirname(path), data, _nemo_rows(Path(path), data.text_column))


WEB_DATASET = Format("webdataset", "WebDataset shards (*.tar)", _is_web_dataset, _open_web_dataset)
NEMO_TARRED = Format("nemo_tarred", "NeMo's tarred_audio_manifest.json", _is_nemo_tarred, _open_nemo_tarred)
