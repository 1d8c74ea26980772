"""Folders of `datasets`' save_to_disk: Arrow files, copied once to Parquet (audio inside) or JSON lines (paths)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import one_line
from common.files import cannot_write, written_whole
from config import DataConfig
from corpus.columns import OPTIONAL_COLUMNS, pick_columns, read_path
from corpus.converted import ConvertedCorpus, convert
from corpus.manifest import Corpus, Format, ManifestError
from corpus.parquet_manifest import open_parquet

ROWS_PER_GROUP = 128


def _recognises(path: str) -> bool:
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a split, in order.

    Raises:
        ManifestError: the folder holds several splits, or names no files.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(each.name for each in folder.iterdir() if (each / "state.json").is_file())
        raise ManifestError(f"{folder} holds the splits {', '.join(splits)}: name one, {folder / (splits or [''])[0]}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"cannot read {folder / 'state.json'}: {one_line(error)}") from error


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[Any]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as batches:
            yield batches
    except pyarrow.ArrowInvalid as error:
        raise ManifestError(f"cannot read {file} as Arrow: {one_line(error)}") from error


def _open(path: str, data: DataConfig) -> Corpus:
    import pyarrow.types as types

    files = _arrow_files(Path(path))
    if not files:
        raise ManifestError(f"{path} holds no rows")
    with _reading(files[0]) as batches:
        schema = batches.schema
    columns = pick_columns(path, schema.names, data)
    kind = schema.field(columns.audio).type
    if types.is_string(kind) or types.is_large_string(kind):
        return _convert_paths(path, files, columns.audio, columns.text, data)
    copy = _copy_to_parquet(path, files, data)
    return replace(open_parquet(str(copy), data), name=path)


def _convert_paths(path: str, files: list[Path], audio: str, text: str, data: DataConfig) -> ConvertedCorpus:
    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            with _reading(file) as batches:
                for batch in batches:
                    names = [name for name in (audio, text, *OPTIONAL_COLUMNS) if name in batch.schema.names]
                    for values in batch.select(names).to_pylist():
                        more = {name: values[name] for name in names if name in OPTIONAL_COLUMNS}
                        yield {"audio": read_path(values[audio]), "text": values[text], **more}

    return convert(path, path, data, rows())


def _copy_to_parquet(path: str, files: list[Path], data: DataConfig) -> Path:
    import pyarrow.parquet

    state = (Path(path) / "state.json").read_bytes() + str([os.stat(file).st_size for file in files]).encode()
    folder = Path(data.cache_dir) / "saved" / hashlib.blake2b(state, digest_size=16).hexdigest()
    copy = folder / "data.parquet"
    if copy.exists():
        return copy
    try:
        with _reading(files[0]) as batches:
            schema = batches.schema
        with written_whole(copy) as target, pyarrow.parquet.ParquetWriter(target, schema) as writer:
            for file in files:
                with _reading(file) as batches:
                    for batch in batches:
                        for start in range(0, batch.num_rows, ROWS_PER_GROUP):
                            writer.write_batch(batch.slice(start, ROWS_PER_GROUP), row_group_size=ROWS_PER_GROUP)
    except OSError as error:
        raise cannot_write(ManifestError, copy, error, "make room, or choose another --data.cache_dir") from error
    return copy


SAVED_DATASET = Format("saved_dataset", "a folder of datasets' save_to_disk", _recognises, _open)
