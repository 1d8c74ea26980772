"""Makes a small corpus of synthetic spoken digits with espeak-ng, such as the one in `examples/digits`.

    python examples/make_digits.py --output my_digits

An utterance is one to five English digits ("three one four"), 16 kHz mono, Ogg Opus, shorter than 3 s, so that slowed
down to three quarters it still fits into a window of 4 s. The folders `train` and `eval` each hold a `metadata.csv`
with the columns file_name, text, duration (seconds) and id; the id says how the utterance was made, as in
`en-us+f3_140wpm_pitch45_three-one-four`.

The two parts share the voices and the ten digits. They never share a speed, a pitch, or a string of two or more digits:
no recording, and no setting of the synthesiser, is in both.

The same seed gives the same utterances (with the same version of espeak-ng). The files' bytes still differ in one
number: Ogg gives every stream a random serial.
"""

from __future__ import annotations

import csv
import io
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's modules are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from common import command_line
from common.errors import UserError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLING_RATE_HZ = 16000
MAX_DURATION_S = 2.95
"""Slowed down to 0.75 of its speed, the longest utterance still fits into 4 s."""
OPUS_COMPRESSION = 0.973
"""libsndfile's scale for Opus runs from 256 kbit/s (0) to 6 kbit/s (1): this is 13 kbit/s."""

VOICES = (
    "en-us",
    "en-us+f3",
    "en-us+m3",
    "en-gb",
    "en-gb+f2",
    "en-gb-scotland+m1",
    "en-gb-scotland+f4",
    "en-us-nyc+f5",
)
LENGTH_WEIGHTS = {1: 2, 2: 3, 3: 5, 4: 5, 5: 5}
"""How often an utterance has so many digits."""


class SynthesisError(UserError):
    """espeak-ng is missing or does not know a voice."""


@dataclass(frozen=True)
class Part:
    """One half of the corpus and the synthesiser settings that belong to it alone."""

    name: str
    voices: Sequence[str]
    speeds_wpm: Sequence[int]
    """Words per minute."""
    pitches: Sequence[int]
    """espeak-ng's scale, 0 to 99."""


EVAL = Part("eval", VOICES, (132, 148, 162), (38, 52, 68))
TRAIN = Part(
    "train",
    VOICES,
    [speed_wpm for speed_wpm in range(125, 171) if speed_wpm not in EVAL.speeds_wpm],
    [pitch for pitch in range(30, 76) if pitch not in EVAL.pitches],
)


@dataclass(frozen=True)
class Utterance:
    """What is said, and how. Two equal ones would be the same recording."""

    digits: tuple[str, ...]
    voice: str
    speed_wpm: int
    pitch: int

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(self.digits)

    @property
    def id(self) -> str:
        """A name that tells how to make the utterance again."""
        return f"{self.voice}_{self.speed_wpm}wpm_pitch{self.pitch}_{'-'.join(self.digits)}"


@dataclass
class Settings:
    """What the command line sets."""

    output: Path
    """Folder for the corpus. Must not hold one already."""
    train_utterances: int = 800
    """Utterances for training, at least 1."""
    eval_utterances: int = 80
    """Utterances for evaluation, at least 1."""
    seed: int = 7
    """Seed of the choice of digits, voices, speeds, pitches and pauses."""
    espeak: str = field(default="espeak-ng")
    """Command that runs espeak-ng."""


def choose_utterances(part: Part, count: int, rng: random.Random, taken: set[tuple[str, ...]]) -> list[Utterance]:
    """Draws `count` different utterances whose strings of two or more digits are not in `taken`."""
    chosen: dict[Utterance, None] = {}  # a set that keeps its order
    lengths, weights = list(LENGTH_WEIGHTS), list(LENGTH_WEIGHTS.values())
    while len(chosen) < count:
        digits = tuple(rng.choices(DIGITS, k=rng.choices(lengths, weights)[0]))
        if digits not in taken:
            voice, speed_wpm, pitch = rng.choice(part.voices), rng.choice(part.speeds_wpm), rng.choice(part.pitches)
            chosen[Utterance(digits, voice, speed_wpm, pitch)] = None
    return list(chosen)


def synthesize(utterance: Utterance, espeak: str, rng: random.Random) -> np.ndarray:
    """Speaks an utterance.

    Returns:
        float32 `[samples]` at 16 kHz, peak 0.8, with a short pause of random length before and after the speech.

    Raises:
        SynthesisError: espeak-ng failed.
    """
    command = [espeak, "-v", utterance.voice, "-s", str(utterance.speed_wpm), "-p", str(utterance.pitch), "--stdout"]
    done = subprocess.run([*command, utterance.text], capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}, no sound"
        raise SynthesisError(f"espeak-ng could not speak with the voice {utterance.voice}: {reason}")
    speech, rate_hz = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    speech = _cut_silence(soxr.resample(speech, rate_hz, SAMPLING_RATE_HZ))
    pauses = [np.zeros(int(rng.uniform(0.03, 0.15) * SAMPLING_RATE_HZ), np.float32) for _ in range(2)]
    return np.concatenate([pauses[0], 0.8 / np.abs(speech).max() * speech, pauses[1]])


def _cut_silence(speech: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    return speech[loud[0] : loud[-1] + 1]


def write_part(part: Part, utterances: Sequence[Utterance], settings: Settings, rng: random.Random) -> float:
    """Writes one folder: an Ogg file per utterance, and metadata.csv.

    Returns:
        The duration of all its utterances, in seconds.

    Raises:
        SynthesisError: espeak-ng failed.
        UserError: an utterance came out longer than `MAX_DURATION_S`.
    """
    folder = settings.output / part.name
    folder.mkdir(parents=True)
    total_s = 0.0
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as metadata:
        rows = csv.writer(metadata, lineterminator="\n")
        rows.writerow(["file_name", "text", "duration", "id"])
        for number, utterance in enumerate(tqdm(utterances, desc=part.name, unit="utterance")):
            waveform = synthesize(utterance, settings.espeak, rng)
            duration_s = len(waveform) / SAMPLING_RATE_HZ
            if duration_s > MAX_DURATION_S:
                raise UserError(f"{utterance.id} lasts {duration_s:.2f} s: expected at most {MAX_DURATION_S} s")
            file_name = f"{number:04d}.ogg"
            write_opus(folder / file_name, waveform, OPUS_COMPRESSION)
            rows.writerow([file_name, utterance.text, f"{duration_s:.4f}", utterance.id])
            total_s += duration_s
    return total_s


def write_opus(path: Path, waveform: np.ndarray, compression: float) -> None:
    """Writes an Ogg Opus file at 16 kHz. `compression`: libsndfile's scale from 256 kbit/s (0) to 6 kbit/s (1)."""
    soundfile.write(path, waveform, SAMPLING_RATE_HZ, format="OGG", subtype="OPUS", compression_level=compression)


def make_digits(settings: Settings) -> dict[str, float]:
    """Writes the corpus.

    Returns:
        Name of each part → its duration in seconds.

    Raises:
        UserError: espeak-ng is missing or fails, or the folder is there already or cannot be written.
    """
    if min(settings.train_utterances, settings.eval_utterances) < 1:
        raise UserError("--train_utterances and --eval_utterances: expected at least 1 each")
    if shutil.which(settings.espeak) is None:
        raise SynthesisError(
            f"{settings.espeak} was not found: install it (apt-get install espeak-ng, brew install espeak-ng), "
            "or use the corpus that is stored in examples/digits"
        )
    rng = random.Random(settings.seed)
    evaluation = choose_utterances(EVAL, settings.eval_utterances, rng, set())
    held_out = {utterance.digits for utterance in evaluation if len(utterance.digits) > 1}
    training = choose_utterances(TRAIN, settings.train_utterances, rng, held_out)
    try:
        return {
            part.name: write_part(part, utterances, settings, rng)
            for part, utterances in ((TRAIN, training), (EVAL, evaluation))
        }
    except FileExistsError as error:
        raise UserError(f"{error.filename} is there already: delete it, or choose another --output") from error
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot write to {settings.output}: {error}; choose another --output") from error


def main() -> None:
    settings = command_line.parse(Settings, "Makes a small corpus of synthetic spoken digits with espeak-ng.")
    durations_s = make_digits(settings)
    counts = {"train": settings.train_utterances, "eval": settings.eval_utterances}
    for part, duration_s in durations_s.items():
        size = sum(path.stat().st_size for path in (settings.output / part).iterdir())
        print(f"{part}: {counts[part]} utterances, {duration_s / 3600:.3f} hours, {size / 1e6:.2f} MB")
    print(f"manifests: {settings.output}/train/metadata.csv, {settings.output}/eval/metadata.csv")


if __name__ == "__main__":
    command_line.run(main)
