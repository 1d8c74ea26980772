"""lhotse on the chain that it and this project share, and this project on the same chain.

The chain: load; a quarter of the samples at another speed by resampling, a quarter with noise at 10 dB; Whisper's
log-mel of the real frames, float32. lhotse by its own parts, those that work without torchaudio: `perturb_speed` (its
resampler), `mix` (its mixer), `WhisperFbank`. In its favour: the noise is in WAV files, which cost little to decode,
and the extractor is called on the loaded audio, which is faster than `compute_features`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soxr
from lhotse import CutSet, Recording, WhisperFbank
from lhotse.cut import Cut

from audio.effects import mix_background
from audio.noise_sources import NoiseRecordings
from audio.waveform import load_waveform
from config import DataConfig
from features.feature_spec import FeatureSpec
from features.log_mel import log_mel

SPEEDS = (0.9, 1.1)
SNR_DB = 10.0
FOCUS = 1 / (1 + 10 ** (-SNR_DB / 20))
"""The share of speech that gives this ratio."""


def kind(turn: int) -> str:
    """What is done to sample `turn`."""
    return ("nothing", "speed", "nothing", "noise")[turn % 4]


class LhotseWay:
    """Cuts with lazy transforms, and lhotse's extractor."""

    def __init__(self, files: list[Path], noise: list[Path]) -> None:
        """
        Args:
            files: the clips.
            noise: WAV files, each longer than any clip.
        """
        noises = [Recording.from_file(path).to_cut() for path in noise]
        rng = np.random.default_rng(0)
        self._cuts: list[Cut] = []
        for turn in range(4 * len(files)):
            cut: Cut = Recording.from_file(files[turn % len(files)]).to_cut()
            if kind(turn) == "speed":
                cut = cut.perturb_speed(SPEEDS[turn // 4 % 2])
            elif kind(turn) == "noise":
                other = noises[turn // 4 % len(noises)]
                offset = float(rng.uniform(0, other.duration - cut.duration))
                cut = cut.mix(other.truncate(offset=offset, duration=cut.duration), snr=SNR_DB)
            self._cuts.append(cut)
        self._cuts = list(CutSet.from_cuts(self._cuts))
        self._extractor, self._next = WhisperFbank(), 0

    def make(self, count: int) -> int:
        """Makes `count` log-mels; returns how many."""
        for _ in range(count):
            cut = self._cuts[self._next % len(self._cuts)]
            self._extractor.extract(cut.load_audio(), cut.sampling_rate)
            self._next += 1
        return count


class OursOnTheSameChain:
    """The same chain by this project's parts."""

    def __init__(self, files: list[Path], noise: list[Path], spec: FeatureSpec) -> None:
        self._files, self._spec, self._next = files, spec, 0
        self._data = DataConfig(peak_normalize=False)
        self._noise = NoiseRecordings([str(path) for path in noise], spec.sampling_rate)
        self._rng = np.random.default_rng(0)

    def make(self, count: int) -> int:
        """Makes `count` log-mels; returns how many."""
        for _ in range(count):
            turn, self._next = self._next, self._next + 1
            waveform = load_waveform(self._files[turn % len(self._files)], self._spec, self._data)
            if kind(turn) == "speed":
                speed, rate = SPEEDS[turn // 4 % 2], self._spec.sampling_rate
                waveform = soxr.resample(waveform, rate * speed, rate)
            elif kind(turn) == "noise":
                waveform = mix_background(waveform, self._noise.crop(len(waveform), self._rng), FOCUS)
            log_mel(waveform, self._spec)
        return count
