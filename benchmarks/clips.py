"""Clips for the benchmarks: 3 to 5 s of spoken digits in FLAC, and manifests of any length that name them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DIGITS = EXAMPLES / "digits" / "train"
NOISE = EXAMPLES / "noise"
SAMPLING_RATE = 16000
CLIPS = 200


def make_clips(folder: Path, low_s: float = 3.0, high_s: float = 5.0) -> float:
    """Writes `CLIPS` recordings, durations uniform between `low_s` and `high_s`, and a metadata.csv that names them.

    Returns:
        Their mean duration in seconds.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (DIGITS / "metadata.csv").open(encoding="utf-8") as file:
        utterances = list(csv.DictReader(file))
    durations = rng.permutation(np.linspace(low_s, high_s, CLIPS))
    rows = []
    for number, duration_s in enumerate(durations):
        speech, texts = np.zeros(0), []
        while len(speech) < duration_s * SAMPLING_RATE:
            utterance = utterances[rng.integers(len(utterances))]
            speech = np.concatenate([speech, soundfile.read(DIGITS / utterance["file_name"])[0]])
            texts.append(utterance["text"])
        name = f"{number:04}.flac"
        soundfile.write(folder / name, speech[: round(duration_s * SAMPLING_RATE)], SAMPLING_RATE)
        rows.append({"audio": name, "text": " ".join(texts), "duration": f"{duration_s:.3f}"})
    write_manifest(folder / "metadata.csv", rows, len(rows))
    return float(durations.mean())


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of a manifest beside the folder with the clips that `make_clips` wrote: audio, text, duration."""
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        return [
            {"audio": f"{folder.name}/{row['audio']}", "text": row["text"], "duration": row["duration"]}
            for row in csv.DictReader(file)
        ]


def read_texts(folder: Path) -> list[str]:
    """Transcripts of the clips that `make_clips` wrote, in the order of their names."""
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def write_manifest(path: Path, rows: list[dict[str, str]], length: int) -> None:
    """Writes a manifest of `length` rows, repeating `rows` under ids of their own."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", *rows[0]])
        writer.writeheader()
        writer.writerows({"id": f"r{number}", **rows[number % len(rows)]} for number in range(length))


def write_noise(folder: Path) -> list[Path]:
    """Copies the noise to WAV files of 30 s, for peers that read it anew for each clip; returns their paths."""
    folder.mkdir()
    written = []
    for path in sorted(NOISE.glob("*.ogg")):
        noise, rate = soundfile.read(path, dtype="float32")
        soundfile.write(folder / f"{path.stem}.wav", np.resize(noise, 30 * rate), rate)
        written.append(folder / f"{path.stem}.wav")
    return written
