"""Transcribes audio files of any length with a Whisper model.

    python -m tools.transcribe talk.mp3 interviews/ --model out --format srt --output subtitles

Without --output the transcripts are printed. A folder stands for all audio files in it. --compare takes a manifest with
references, and prints error rates; without FILES it transcribes the manifest's.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import soundfile
import tyro
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from audio.audio_file import RecordingError
from audio.waveform import recording_duration_s
from common import command_line
from common.errors import UserError
from common.files import cannot_write, written_whole
from common.progress_bar import progress_bar
from config import DataConfig
from corpus.formats import open_corpus
from storage.remote_files import SourceError, is_url, join
from tools.speech_to_text import Transcriber, Transcript
from tools.transcript_formats import FORMATS
from training.metrics import error_rates
from training.report import RATE_NAMES

logger = logging.getLogger(__name__)

AUDIO_ENDINGS = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus", ".oga", ".aif", ".wave"} - {".raw"}
)
"""Files of a folder that are taken for audio. A file that is named is read whatever its name says."""


@dataclass
class Settings:
    """What the command line sets."""

    files: tyro.conf.Positional[list[str]] = field(default_factory=list)
    """Audio files, URLs, or folders with audio files."""
    model: str = "out"
    """Folder of the model, a checkpoint folder, or a name on the Hugging Face Hub."""
    format: Literal["text", "json", "srt", "vtt"] = "text"
    """json: a list of {"file", "text", "segments": [{"start", "end", "text"}]}, times in seconds."""
    output: str = ""
    """Folder to write a file per audio file to. Empty: print."""
    language: str = ""
    """Language of the audio, as Whisper names it. Empty: what the model was trained on, else it is detected."""
    task: Literal["", "transcribe", "translate"] = ""
    """Empty: what the model was trained for."""
    timestamps: Literal["auto", "True", "False"] = "auto"
    """auto: for files longer than the model's window, which need them, and where the model's generation config asks for
    them. False: cuts long files where they are quiet, for a model that was trained on single sentences without
    timestamps."""
    batch_size: int = 8
    """Files that are decoded together, at least 1."""
    compare: str = ""
    """Manifest with references (columns audio and text): prints word and character error rates."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch_size is {self.batch_size}: expected at least 1")
        if not self.files and not self.compare:
            raise UserError("no FILES: name audio files or folders, or a manifest with --compare")


def main() -> None:
    settings = command_line.parse(Settings, "Transcribes audio files of any length with a Whisper model.")
    for name in ("transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    set_verbosity_error()
    disable_progress_bar()
    references = read_references(settings.compare) if settings.compare else {}
    files = find_audio(settings.files) if settings.files else list(references)
    timestamps = {"auto": None, "True": True, "False": False}[settings.timestamps]
    transcriber = Transcriber(settings.model, settings.language, settings.task, timestamps, settings.batch_size)

    transcripts = transcribe(transcriber, files, settings)

    if not settings.output:
        sys.stdout.write(FORMATS[settings.format]([t for t in transcripts if not t.failure]))
    if settings.compare:
        mixes = not settings.output and settings.format != "text"
        print(compare(transcripts, references), file=sys.stderr if mixes else sys.stdout)
    failed = sum(bool(transcript.failure) for transcript in transcripts)
    if failed:
        raise UserError(f"{failed} of {len(files)} files could not be transcribed: the reasons stand above")


def transcribe(transcriber: Transcriber, files: Sequence[str], settings: Settings) -> list[Transcript]:
    """Transcribes files with a progress bar, and writes each transcript as soon as it is done.

    Raises:
        UserError: the output folder can't be written.
    """
    names = output_names(files, settings.format) if settings.output else []
    found: dict[int, Transcript] = {}
    bar = progress_bar(math.ceil(sum(map(duration_s, files))), "s", "transcribing")
    with bar, logging_redirect_tqdm():
        for index, transcript in transcriber.transcribe(files, lambda seconds: bar.update(round(seconds, 2))):
            found[index] = transcript
            if transcript.failure:
                logger.error("%s: %s", transcript.file, transcript.failure)
            elif settings.output:
                write(Path(settings.output) / names[index], FORMATS[settings.format]([transcript]))
    return [found[index] for index in range(len(files))]


def write(path: Path, text: str) -> None:
    """Writes a transcript.

    Raises:
        UserError: the folder can't be written.
    """
    try:
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise cannot_write(UserError, path, error, "choose another --output") from error


def find_audio(entries: Sequence[str]) -> list[str]:
    """The files that the command line names; of a folder, all audio files in it and below.

    Raises:
        UserError: an entry does not exist, or a folder holds no audio.
    """
    found: list[str] = []
    for entry in entries:
        path = Path(entry).expanduser()
        if is_url(entry):
            found.append(entry)
        elif path.is_dir():
            inside = [p for p in path.rglob("*") if p.suffix.lower() in AUDIO_ENDINGS and not p.name.startswith(".")]
            if not inside:
                raise UserError(f"the folder {path} holds no audio files ({', '.join(sorted(AUDIO_ENDINGS))})")
            found += sorted(str(p) for p in inside)
        elif path.exists():
            found.append(str(path))
        else:
            raise UserError(f"no file or folder {path}")
    return list(dict.fromkeys(found))


def output_names(files: Sequence[str], ending: str) -> list[str]:
    """What the transcripts are called: talk.mp3 → talk.srt; with the first ending, or a number, where two collide."""
    ending = "txt" if ending == "text" else ending
    stems = [Path(file).stem for file in files]
    full = [Path(file).name for file in files]
    names = [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, full, strict=True)]
    return [
        f"{name}.{ending}" if names.count(name) == 1 else f"{name}.{names[:i].count(name) + 1}.{ending}"
        for i, name in enumerate(names)
    ]


def duration_s(audio: str) -> float:
    """By the file's header, for the progress bar; 0 where there is none."""
    try:
        return recording_duration_s(audio, DataConfig())
    except (RecordingError, SourceError):
        return 0.0


def read_references(manifest: str) -> dict[str, str]:
    """A manifest's transcripts by audio file.

    Raises:
        ManifestError: no such manifest, or no such columns in it.
    """
    data = DataConfig()
    opened = open_corpus(manifest, data)
    table = opened.index(data)
    rows = [row for task in table.tasks() for row in table.read(*task)]
    return {
        join(opened.root, row.audio): row.transcript
        for row in rows
        if isinstance(row.transcript, str) and row.transcript
    }


def compare(transcripts: Sequence[Transcript], references: dict[str, str]) -> str:
    """The error rates of the transcripts that have a reference, by path, or by name where only one has it.

    Raises:
        UserError: none of them has one.
    """
    by_path = {_resolved(file): text for file, text in references.items()}
    names = [Path(file).name for file in references]
    by_name = {name: text for name, text in zip(names, references.values(), strict=True) if names.count(name) == 1}
    pairs = [
        (reference, transcript.text)
        for transcript in transcripts
        if not transcript.failure
        and (reference := by_path.get(_resolved(transcript.file), by_name.get(Path(transcript.file).name)))
    ]
    if not pairs:
        raise UserError("none of the files has a reference in --compare: expected the same paths, or the same names")
    rates = error_rates([reference for reference, _ in pairs], [text for _, text in pairs])
    lines = [f"{RATE_NAMES[name]}: {rate:.4f}" for name, rate in rates.items()]
    return "\n".join([f"{len(pairs)} of {len(transcripts)} files have a reference", *lines])


def _resolved(file: str) -> str:
    return file if is_url(file) else str(Path(file).expanduser().resolve())


if __name__ == "__main__":
    command_line.run(main)
