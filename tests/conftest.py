"""What the tests share: recordings made by code, and a tiny Whisper checkpoint."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from examples.make_tiny_checkpoint import make_tiny_checkpoint

DIGITS = Path(__file__).parent.parent / "examples" / "digits"


# --- recordings and checkpoints ---


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Whisper checkpoint with a window of 4 s."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", folder)
    return folder


def tone(duration_s: float, frequency_hz: float = 440.0, sampling_rate: int = 16000, seed: int = 0) -> np.ndarray:
    """A tone in a little noise, float32 `[samples]`, peak about 0.5."""
    time_s = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    return (0.45 * np.sin(2 * np.pi * frequency_hz * time_s) + 0.01 * noise).astype(np.float32)


@pytest.fixture
def write_recording(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tone to a file below the test's folder; the ending of the name decides the format."""

    def write(name: str, duration_s: float = 1.0, sampling_rate: int = 16000, channels: int = 1, **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        waveform = np.stack([tone(duration_s, 300 + 100 * c, sampling_rate) for c in range(channels)], axis=1)
        soundfile.write(path, waveform, sampling_rate, **options)
        return path

    return write


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[[Sequence[Mapping[str, object]]], Path]:
    """Writes rows to train.csv in the test's folder."""

    def write(rows: Sequence[Mapping[str, object]], name: str = "train.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write
