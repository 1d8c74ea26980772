"""lhotse's cuts (cuts.jsonl.gz): each supervision of a cut is a segment of the cut's recording."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.converted import ConvertedCorpus, convert, read_lines
from corpus.manifest import Format, ManifestError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def first_row(path: str) -> dict[str, Any]:
    """The object in the first line of a file of JSON lines; empty: it is none."""
    if not path.lower().endswith(ENDINGS) or not os.path.isfile(path):
        return {}
    try:
        row = json.loads(next(read_lines(Path(path)), (1, ""))[1])
    except (ValueError, RecursionError, OSError, EOFError, ManifestError):
        return {}
    return row if isinstance(row, dict) else {}


def _recognises(path: str) -> bool:
    row = first_row(path)
    return str(row.get("type", "")).endswith("Cut") or {"supervisions", "start", "duration"} <= row.keys()


def _source(recording: dict[str, Any], where: str) -> tuple[str, bool]:
    """Where a recording's audio lies, and whether it has several channels."""
    sources = recording.get("sources") or [{}]
    kind = sources[0].get("type")
    if len(sources) > 1 or kind not in ("file", "url"):
        found = f"{len(sources)} sources" if len(sources) > 1 else f"a source of type {kind!r}"
        raise ManifestError(
            f"{where}: the recording {recording.get('id')!r} has {found}: expected one file or URL. Commands are never "
            "run; `CutSet.save_audios` writes audio to files"
        )
    return sources[0]["source"], len(sources[0].get("channels", [0])) > 1


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in read_lines(file):
        where = f"line {number} of {file}"
        try:
            cut = json.loads(line)
            if "recording" not in cut:
                raise ManifestError(f"{where} is a cut without a recording ({cut.get('type')}): mixed and padded cuts, "
                                    "and cuts of features, are not read")  # fmt: skip
            audio, has_channels = _source(cut["recording"], where)
            whole_s, channel = cut["recording"]["duration"], cut.get("channel", 0)
            for supervision in cut.get("supervisions") or [{"start": 0, "duration": cut["duration"]}]:
                offset_s, duration_s = cut["start"] + supervision["start"], supervision["duration"]
                values = {"audio": audio, "text": supervision.get("text"), "duration": duration_s,
                          "id": supervision.get("id", cut.get("id"))}  # fmt: skip
                if offset_s > 0 or duration_s < whole_s - 1e-3:
                    values["offset"] = max(0.0, round(offset_s, 6))
                if has_channels and isinstance(channel, int):
                    values["channel"] = channel
                if supervision.get("language"):
                    values["language"] = supervision["language"]
                yield values
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{where} is not a cut as lhotse writes it: {error!r}") from error


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    return convert(path, os.path.dirname(path), data, _rows(Path(path)))


LHOTSE = Format("lhotse", "lhotse's cuts.jsonl.gz", _recognises, _open)
