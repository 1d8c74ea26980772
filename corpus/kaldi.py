"""Kaldi data folders: wav.scp, text, and perhaps segments, utt2dur and utt2lang. Commands in wav.scp are never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import DataConfig
from corpus.converted import ConvertedCorpus, convert, read_lines, read_table
from corpus.manifest import Format, ManifestError


def _recognises(path: str) -> bool:
    return (Path(path) / "wav.scp").is_file() and (Path(path) / "text").is_file()


def _read_audio(file: Path) -> dict[str, str]:
    """Paths by recording.

    Raises:
        ManifestError: a command stands where a path should.
    """
    found: dict[str, str] = {}
    for number, line in read_lines(file):
        recording, _, source = line.strip().partition(" ")
        source = source.strip()
        if source.endswith("|") or source.startswith("|"):
            raise ManifestError(
                f"line {number} of {file} is a command ({source[:60]}), and commands of a corpus are never run: write "
                "the audio to files once (`wav-copy scp:wav.scp ark,scp:…` or a loop over the commands) and name those"
            )
        if ".ark:" in source:
            raise ManifestError(
                f"line {number} of {file} is a place in an archive ({source[:60]}): write the audio to files of its "
                "own (`wav-copy`) and name those"
            )
        found[recording] = source
    return found


def _read_segments(file: Path) -> dict[str, dict[str, Any]]:
    """Recording and times by utterance."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in read_lines(file) if file.is_file() else ():
        try:
            utterance, recording, start, end = line.split()[:4]
            times = {"offset": float(start), "end": float(end) if float(end) >= 0 else None}  # -1: to the end
        except ValueError as error:
            raise ManifestError(f"line {number} of {file} is not an utterance, a recording and two times") from error
        found[utterance] = {"recording": recording, **times}
    return found


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    audio, segments = _read_audio(folder / "wav.scp"), _read_segments(folder / "segments")
    durations, languages = read_table(folder / "utt2dur"), read_table(folder / "utt2lang")
    texts = read_table(folder / "text")
    for utterance in texts | {name: "" for name in segments if name not in texts}:
        values = dict(segments.get(utterance, {}))
        recording = values.pop("recording", utterance if not segments else "")
        if not segments:
            values = {"duration": durations.get(utterance)}
        values |= {"language": languages[utterance]} if utterance in languages else {}
        yield {"audio": audio.get(recording, ""), "text": texts.get(utterance, ""), "id": utterance, **values}


def _open(path: str, data: DataConfig) -> ConvertedCorpus:
    return convert(path, path, data, _rows(Path(path)))


KALDI = Format("kaldi", "a Kaldi data folder (wav.scp, text)", _recognises, _open)
