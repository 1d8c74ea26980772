"""OpenSLR's sharded folders: utt_spk_text.tsv (utterance, speaker, transcript) and data/00/00….flac."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.converted import ConvertedCorpus, convert, read_lines, with_ending
from corpus.manifest import Format, ManifestError

NAME = "utt_spk_text.tsv"


def _find(path: str) -> Path:
    return Path(path) / NAME if os.path.isdir(path) else Path(path)


def _recognises(path: str) -> bool:
    return _find(path).name == NAME and _find(path).is_file()


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in read_lines(file):
        fields = line.split("\t")
        if len(fields) != 3:
            raise ManifestError(f"line {number} of {file} has {len(fields)} fields: expected utterance, speaker, text")
        place = os.path.join("data", fields[0][:2], fields[0])
        yield {"audio": with_ending(file.parent, place), "text": fields[2], "id": fields[0]}


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    return convert(path, str(_find(path).parent), data, _rows(_find(path)))


OPENSLR = Format("openslr", f"an OpenSLR folder ({NAME} and data/)", _recognises, _open)
