"""The augmentations: chooses what is done to each copy of a recording, and applies it.

What there is to choose from is in `audio.augmentation_registry`, a row for each augmentation; what each does to the
sound is a pure function in `audio.effects`, or `features.masking` for the log-mel. All that is random in a sample comes
from the generator that belongs to it, never from the global ones.

All waveforms are float32 [samples], mono, within ±1, and so are the results.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audio.augmentation_registry import Option, enabled_rows
from audio.extra_transforms import TransformError, check_transforms
from audio.noise_sources import check_noise
from audio.room_acoustics import BANK_VERSION
from config import AudioAugmentationConfig

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

VERSION = 2
"""Raise it when a change makes other samples from the same configuration: queues of the old kind are then refused."""


@dataclass(frozen=True)
class Step:
    """One augmentation with its option."""

    name: str
    option: Option = ()

    def __str__(self) -> str:
        values = "@".join(f"{value:g}" if not isinstance(value, str) else value for value in self.option)
        return f"{self.name}={values}" if values else self.name


@dataclass(frozen=True)
class Choice:
    """What is done to one copy of a recording, in this order."""

    steps: tuple[Step, ...] = ()

    @property
    def label(self) -> str:
        """For reports: "speed=0.9+color_noise=pink@0.1", or "none". "speed=1": no factor fitted the window."""
        return "+".join(map(str, self.steps)) or "none"


class AudioAugmentations:
    """Chooses augmentations and applies them. One per worker: it holds decoded noise and impulse responses.

    Args:
        config: the options.
        cache_dir: where `prepare` has put the impulse responses; they are made here if it has not.
        max_samples: the model's window. No augmentation makes a recording longer.

    Raises:
        UserError: background noise that cannot be read, a cache folder that cannot be written, or a transform of the
            user's that cannot be loaded.
    """

    def __init__(self, config: AudioAugmentationConfig, cache_dir: Path, max_samples: int) -> None:
        self.config = config
        self.max_samples = max_samples
        self._rows = {row.name: row for row in enabled_rows(config)}
        self.enabled = tuple(self._rows)
        """Names of the augmentations that take part, in rotation order."""
        self.options = {name: list(row.options(config)) for name, row in self._rows.items()}
        self._effects = {name: row.make_effect(config, cache_dir) for name, row in self._rows.items()}

    def choose(self, turn: int, samples: int, rng: np.random.Generator) -> Choice:
        """What to do to a copy of a recording.

        In round robin, turn by turn, one augmentation after the other, and after each round the next option of each.
        With `multiple_aug`, each by its probability, with any of its options.

        Args:
            turn: 0 or more.
            samples: of the recording. An option that would make it too long for the window gives way to the next one.
            rng: read with `multiple_aug` only.
        """
        if self.config.multiple_aug:
            fired = [
                (name, int(rng.integers(2**31)))
                for name, row in self._rows.items()
                if rng.random() < row.probability(self.config)
            ]
        else:
            fired = [(self.enabled[turn % len(self.enabled)], turn // len(self.enabled))] if self.enabled else []
        return Choice(tuple(self._step(name, number, samples) for name, number in fired))

    def apply_waveform(self, waveform: Floats, choice: Choice, rng: np.random.Generator) -> Floats:
        """The steps of `choice` that change the waveform, float32 [samples] → float32 [samples].

        Raises:
            TransformError: one of the user's transforms returned something unusable.
        """
        for step in choice.steps:
            row = self._rows[step.name]
            if row.changes == "waveform":
                waveform = self._effects[step.name](waveform, step.option, rng)
                if row.samples_after is None and len(waveform) > self.max_samples:  # else `choose` has seen to it
                    raise TransformError(
                        f"{step} returned {len(waveform)} samples: expected at most {self.max_samples}, the model's "
                        "window; lower data.max_duration_s, or correct its arguments"
                    )
        return waveform

    def apply_log_mel(self, log_mel: Floats, choice: Choice, rng: np.random.Generator) -> Floats:
        """The steps of `choice` that change the log-mel, float32 [mel bins, frames] → the same shape."""
        for step in choice.steps:
            if self._rows[step.name].changes == "log-mel":
                log_mel = self._effects[step.name](log_mel, step.option, rng)
        return log_mel

    def _step(self, name: str, number: int, samples: int) -> Step:
        """The augmentation with its option of this number, counted round and round; the next one that fits."""
        row, options = self._rows[name], self.options[name]
        if row.samples_after is None:
            return Step(name, options[number % len(options)])
        rotated = (options[(number + i) % len(options)] for i in range(len(options)))
        fitting = (option for option in rotated if row.samples_after(samples, option) <= self.max_samples)
        return Step(name, next(fitting, row.same_length_option))


class CopyAugmenter:
    """The augmentations of one copy of a recording: chosen when its length is known, then applied."""

    def __init__(self, augmentations: AudioAugmentations, turn: int, rng: np.random.Generator) -> None:
        """
        Args:
            augmentations: chooses and applies them.
            turn: of the round robin.
            rng: source of all that is random in this copy.
        """
        self._augmentations, self._turn, self._rng = augmentations, turn, rng
        self.choice = Choice()
        """What is done; nothing before `augment_waveform`."""

    def augment_waveform(self, waveform: Floats) -> Floats:
        """float32 `[samples]` → the same, possibly of another length."""
        self.choice = self._augmentations.choose(self._turn, len(waveform), self._rng)
        return self._augmentations.apply_waveform(waveform, self.choice, self._rng)

    def augment_log_mel(self, log_mel: Floats) -> Floats:
        """float32 `[mel bins, frames]` → the same shape."""
        return self._augmentations.apply_log_mel(log_mel, self.choice, self._rng)

    @property
    def label(self) -> str:
        """What was done: "speed=0.9", or "none"."""
        return self.choice.label


def enabled_augmentations(config: AudioAugmentationConfig) -> tuple[str, ...]:
    """Names of those that take part, in rotation order: probability above 0; background noise only with files."""
    return tuple(row.name for row in enabled_rows(config))


def check(config: AudioAugmentationConfig) -> None:
    """Tries the user's own transforms and opens the noise files, before anything that takes long.

    Raises:
        ConfigurationError: an entry of `extra_transforms` can't be parsed.
        TransformError: a transform can't be imported, instantiated or called.
        BackgroundNoiseError: a noise file that is missing, empty or can't be decoded.
    """
    if config.bg_noise_aug_prob > 0:
        check_noise(config.bg_noise_file_list)
    if config.extra_transforms_prob > 0:
        check_transforms(config.extra_transforms, config.sample_rate)


def prepare(config: AudioAugmentationConfig, cache_dir: Path) -> None:
    """Does once, in the parent process, what not every worker should do: makes the rooms, checks the noise, warns.

    Raises:
        UserError: background noise that cannot be read, a cache folder that cannot be written, or a transform of the
            user's that cannot be loaded.
    """
    if config.bg_noise_aug_prob > 0 and not config.bg_noise_file_list:
        logger.warning(
            "no background noise: audio_augmentation.bg_noise_file_list is empty, so that augmentation is left out "
            "(name audio files or folders there, or set audio_augmentation.bg_noise_aug_prob to 0)"
        )
    AudioAugmentations(config, cache_dir, max_samples=0)


def prepared_files(config: AudioAugmentationConfig, cache_dir: Path) -> dict[str, bytes]:
    """What `prepare` has left in the cache, for workers that do not share it: file name → content."""
    paths = [path for row in enabled_rows(config) for path in row.cache_files(config, cache_dir)]
    return {path.name: path.read_bytes() for path in paths}


def outside_facts(config: AudioAugmentationConfig) -> dict[str, str]:
    """What decides the samples besides the configuration, by augmentation: noise files, transforms' code or version.

    Raises:
        UserError: noise files that are not there, or a transform that can't be imported.
    """
    facts = {row.name: row.facts(config) for row in enabled_rows(config)}
    return {name: repr(list(values)) for name, values in facts.items() if values}


def fingerprint(config: AudioAugmentationConfig) -> str:
    """A digest of `outside_facts` and of the versions of this code and of the simulated rooms.

    Raises:
        UserError: as `outside_facts`.
    """
    facts: list[object] = [VERSION, BANK_VERSION]
    for row in enabled_rows(config):
        facts += row.facts(config)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
