"""Makes the background noises of the demo by code: babble, a fan, mains hum, traffic and rain.

    python examples/make_noise.py --output my_noise

Each is 10 s, 16 kHz mono, Ogg Opus. The babble is overlapping utterances of the digits' training part. The same seed
gives the same noise. Used by `--audio_augmentation.bg_noise_file_list examples/noise`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's modules are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import soundfile
from scipy import signal

from common import command_line
from common.errors import UserError

SAMPLING_RATE_HZ = 16000
DURATION_S = 10
SAMPLES = DURATION_S * SAMPLING_RATE_HZ
SPEAKERS = 6
"""Voices that talk at the same time in the babble."""
OPUS_COMPRESSION = 0.93
"""libsndfile's scale for Opus runs from 256 kbit/s (0) to 6 kbit/s (1): this is 24 kbit/s."""


@dataclass
class Settings:
    """What the command line sets."""

    output: Path
    """Folder for the noise files. Files of the same names are overwritten."""
    speech: Path = Path(__file__).resolve().parent / "digits" / "train"
    """Folder of recordings that the babble is made of."""
    seed: int = 0
    """Seed of all noise."""


def babble(rng: np.random.Generator, speech: Path) -> np.ndarray:
    """Several speakers at once, each saying random recordings of the folder one after the other.

    Raises:
        UserError: the folder holds no Ogg file.
    """
    recordings = sorted(speech.glob("*.ogg"))
    if not recordings:
        raise UserError(f"{speech} holds no .ogg file to make babble of: name a folder of recordings with --speech")
    mix = np.zeros(SAMPLES)
    for _ in range(SPEAKERS):
        talk = np.zeros(0)
        while len(talk) < SAMPLES:
            waveform, _ = soundfile.read(recordings[rng.integers(len(recordings))])
            talk = np.concatenate([talk, waveform])
        mix += rng.uniform(0.5, 1) * np.roll(talk[:SAMPLES], rng.integers(SAMPLES))
    return mix


def fan(rng: np.random.Generator) -> np.ndarray:
    """Rushing air below 1.5 kHz that swells four times a second, and the tone of the blades."""
    blades = 0.1 * np.sin(2 * np.pi * 120 * _time_s())
    return (1 + 0.2 * np.sin(2 * np.pi * 4 * _time_s())) * _band_noise(rng, 60, 1500) + blades


def hum(rng: np.random.Generator) -> np.ndarray:
    """Mains hum: 50 Hz and its harmonics, over faint hiss."""
    harmonics = sum(np.sin(2 * np.pi * 50 * k * _time_s() + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 9))
    return harmonics + 0.05 * _band_noise(rng, 100, 7000)


def traffic(rng: np.random.Generator) -> np.ndarray:
    """Cars that pass: rumble whose level swells and fades over seconds."""
    passing = np.abs(_band_noise(rng, 0.1, 0.5))
    return (0.2 + passing) * _band_noise(rng, 40, 800) + 0.05 * _band_noise(rng, 800, 5000)


def rain(rng: np.random.Generator) -> np.ndarray:
    """Hiss with thousands of single drops."""
    drops = np.zeros(SAMPLES)
    drops[rng.integers(SAMPLES, size=200 * DURATION_S)] = rng.standard_normal(200 * DURATION_S)
    drop = np.exp(-np.arange(80) / 12)
    return 0.3 * _band_noise(rng, 500, 7500) + 2 * signal.lfilter(drop, 1, drops)


def _time_s() -> np.ndarray:
    return np.arange(SAMPLES) / SAMPLING_RATE_HZ


def _band_noise(rng: np.random.Generator, low_hz: float, high_hz: float) -> np.ndarray:
    """Noise of unit RMS that has energy between two frequencies only; it has no seam where it is repeated."""
    frequencies_hz = np.fft.rfftfreq(SAMPLES, 1 / SAMPLING_RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal(SAMPLES))
    spectrum[(frequencies_hz < low_hz) | (frequencies_hz > high_hz)] = 0
    noise = np.fft.irfft(spectrum, SAMPLES)
    return noise / np.sqrt(np.mean(noise**2))


def make_noise(output: Path, speech: Path, seed: int = 0) -> list[Path]:
    """Writes the noise files.

    Returns:
        Their paths.

    Raises:
        UserError: there is no speech to make babble of, or the folder cannot be written.
    """
    kinds: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "babble": lambda rng: babble(rng, speech),
        "fan": fan,
        "hum": hum,
        "traffic": traffic,
        "rain": rain,
    }
    paths = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number, (name, make) in enumerate(kinds.items()):
            noise = make(np.random.default_rng((seed, number)))
            paths.append(output / f"{name}.ogg")
            soundfile.write(
                paths[-1],
                (0.5 * noise / np.abs(noise).max()).astype(np.float32),
                SAMPLING_RATE_HZ,
                format="OGG",
                subtype="OPUS",
                compression_level=OPUS_COMPRESSION,
            )
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot make noise in {output}: {error}; check --output and --speech") from error
    return paths


def main() -> None:
    settings = command_line.parse(Settings, "Makes background noises for the augmentation.")
    paths = make_noise(settings.output, settings.speech, settings.seed)
    size = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} noises of {DURATION_S} s, {size / 1e3:.0f} kB in {settings.output}")


if __name__ == "__main__":
    command_line.run(main)
