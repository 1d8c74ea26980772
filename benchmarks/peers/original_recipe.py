"""The original recipe, rebuilt from its description (its code is not part of this project).

Described: librosa loads a file; an `AudioAugmentations` object is made for each file, with everything in it; speed and
pitch by a stretching library of rubberband's kind; masks on the spectrum, and back to a waveform by Griffin-Lim; each
file's augmented copy and its original go through `WhisperFeatureExtractor` on 30 s, are pickled, and stored by one SET
per sample after an INFO that reads the memory used. The nearest available parts stand in for what is not named:

- stretching: librosa's phase vocoder. (`rubberband` is a program that pip does not install.)
- far field: attenuation with the distance, and a tail of decaying noise by FFT convolution. Cheaper than simulating
  rooms, which the description does not rule out.
- coloured and background noise: audiomentations. Down- and up-sampling: librosa, which uses soxr.
- speech enhancement: `scipy.signal.wiener`. (noisereduce would take sixteen times as long.)
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import redis
import scipy.signal
from audiomentations import AddBackgroundNoise, AddColorNoise
from transformers import WhisperFeatureExtractor, WhisperTokenizer

RATE = 16000


class OriginalAugmentations:
    """The eight augmentations, all set up for one file."""

    def __init__(self, noise: Path) -> None:
        self.background = [AddBackgroundNoise(str(noise), snr, snr, p=1.0) for snr in (12.0, 19.1, 25.6)]
        self.color = AddColorNoise(20.0, 20.0, p=1.0)
        self.rng = np.random.default_rng()
        self.augmentations = [
            self.speed, self.pitch, self.far_field, self.background_noise, self.color_noise, self.down_up,
            self.enhance, self.mask,
        ]  # fmt: skip

    def speed(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Tempo by the phase vocoder."""
        return librosa.effects.time_stretch(audio, rate=(0.75, 0.8, 0.9, 1.1, 1.25, 1.5)[turn % 6])

    def pitch(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Pitch by the phase vocoder and resampling."""
        return librosa.effects.pitch_shift(audio, sr=RATE, n_steps=(3, -3)[turn % 2])

    def far_field(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Attenuation and a decaying tail."""
        distance_m = (1, 3, 5)[turn % 3]
        tail = self.rng.standard_normal(RATE // 3) * np.exp(-np.arange(RATE // 3) / (0.05 * RATE))
        tail[0] = 5.0
        return (scipy.signal.fftconvolve(audio, tail)[: len(audio)] / distance_m).astype(np.float32)

    def background_noise(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Recorded noise."""
        return np.asarray(self.background[turn % 3](audio, RATE))

    def color_noise(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Coloured noise."""
        return np.asarray(self.color(audio, RATE))

    def down_up(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Down- and up-sampling."""
        rate = (2000, 4000, 8000)[turn % 3]
        low = librosa.resample(audio, orig_sr=RATE, target_sr=rate)
        return librosa.resample(low, orig_sr=rate, target_sr=RATE)

    def enhance(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Noise reduction."""
        return np.asarray(scipy.signal.wiener(audio + np.float32(1e-8)), dtype=np.float32)

    def mask(self, audio: np.ndarray, turn: int) -> np.ndarray:
        """Masks on the spectrum, then Griffin-Lim."""
        spectrum = np.abs(librosa.stft(audio))
        start = self.rng.integers(max(1, spectrum.shape[1] - 5))
        spectrum[:, start : start + 5] = 0
        start = self.rng.integers(spectrum.shape[0] - 20)
        spectrum[start : start + 20] = 0
        return librosa.griffinlim(spectrum, length=len(audio))


class OriginalRecipe:
    """The producer's loop: two samples per file."""

    def __init__(self, files: list[Path], texts: list[str], checkpoint: Path, noise: Path, client: redis.Redis) -> None:
        self._files, self._texts, self._noise, self._client, self._next = files, texts, noise, client, 0
        self._extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
        self._tokenizer = WhisperTokenizer.from_pretrained(checkpoint)

    def make(self, count: int) -> int:
        """Makes and stores `count` samples, which is two per file; returns how many."""
        for _ in range(count // 2):
            turn, self._next = self._next, self._next + 1
            audio, _ = librosa.load(self._files[turn % len(self._files)], sr=RATE)
            augmentations = OriginalAugmentations(self._noise)
            augmentation = augmentations.augmentations[turn % 8]
            for name, waveform in (("augmented", augmentation(audio, turn // 8)), ("original", audio)):
                self.store(f"{name}:{turn}", waveform, self._texts[turn % len(self._texts)])
        return count // 2 * 2

    def store(self, key: str, waveform: np.ndarray, text: str) -> None:
        """Features on 30 s, pickled; the memory read; one SET."""
        features = self._extractor(waveform, sampling_rate=RATE, return_tensors="np").input_features[0]
        sample: dict[str, Any] = {"input_features": features, "labels": self._tokenizer(text).input_ids}
        self._client.info()
        self._client.set(key, pickle.dumps(sample))
