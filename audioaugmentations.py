"""The eight augmentations: waveform → waveform, and log-mel → log-mel for the masks.

Each is a pure function: what it does is in its arguments, and what is random in it comes from the generator that it
is given, never from the global ones. `AudioAugmentations` chooses among them, and holds what they need besides the
recording: the rooms of the far-field effect and the background noise.

All waveforms are float32 [samples], mono, within ±1, and so are the results: as long as before except for the speed,
never NaN, and scaled down as a whole where they would go beyond ±1. Silence stays silence.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from audio.noise_sources import SILENCE_RMS, NoiseRecordings, color_noise, list_noise_files, rms
from audio.room_acoustics import BANK_VERSION, Room, load_room_bank, room_bank_path
from audio.speech_enhancement import reduce_noise
from audio.time_stretch import stretch, stretched_samples
from config import AudioAugmentationConfig

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

AUGMENTATIONS = {
    "speed": "speed_aug_prob",
    "pitch_shift": "pitch_shift_prob",
    "far_field": "far_field_effect_prob",
    "background_noise": "bg_noise_aug_prob",
    "color_noise": "color_noise_prob",
    "down_upsampling": "down_upsampling_prob",
    "speech_enhancement": "speech_enhance_prob",
    "masking": "time_n_freq_masking_prob",
}
"""Name → its probability's field. The order is that of the rotation and, where several are applied, of the way that
sound takes: the speaker, the room, its noise, the microphone, the software behind it, the features."""

VERSION = 2
"""Raise it when a change makes other samples from the same configuration: queues of the old kind are then refused."""

_LARGEST_DENOMINATOR = 100
"""Of a pitch shift's ratio."""
_LONGEST_TIME_MASK = 0.2
"""All time masks together cover at most this share of the frames."""
_WIDEST_FREQ_MASK = 0.5
"""All frequency masks together cover at most this share of the mel bins."""


def change_speed(waveform: Floats, factor: float, sample_rate: int) -> Floats:
    """Changes the tempo at constant pitch. Nothing is cut off: the result has `stretched_samples`.

    Args:
        factor: 1.25 is a quarter faster.
    """
    return _within_range(stretch(waveform, factor, sample_rate))


def shift_pitch(waveform: Floats, semitones: float, sample_rate: int) -> Floats:
    """Shifts the pitch at constant tempo, by stretching and then resampling. Good to a quarter of a cent."""
    # As a ratio of small numbers, which is resampled three times as fast as one without end.
    ratio = Fraction(2 ** (semitones / 12)).limit_denominator(_LARGEST_DENOMINATOR)
    stretched = stretch(waveform, 1 / float(ratio), sample_rate)
    return _within_range(_fit(soxr.resample(stretched, ratio.numerator, ratio.denominator), len(waveform)))


def add_far_field(waveform: Floats, room: Room) -> Floats:
    """What a distant microphone hears: the same words at the same time and level, with the room's reverberation."""
    heard = room.reverberate(waveform)
    level = rms(heard)
    return _within_range(heard * np.float32(rms(waveform) / level)) if level > SILENCE_RMS else waveform.copy()


def mix_background(waveform: Floats, noise: Floats, focus: float) -> Floats:
    """Mixes in noise of the same length. `focus`: share of speech, SNR = 20 log10(focus / (1 - focus)) dB (RMS)."""
    return _add_noise(waveform, noise, (1 - focus) / focus)


def add_color_noise(waveform: Floats, color: str, gain: float, sample_rate: int, rng: np.random.Generator) -> Floats:
    """Adds coloured noise whose RMS is `gain` times that of the waveform."""
    return _add_noise(waveform, color_noise(len(waveform), color, sample_rate, rng), gain)


def down_upsample(waveform: Floats, rate: int, sample_rate: int) -> Floats:
    """Sounds like an old microphone: down to `rate` and up again, so that what lies above rate / 2 is lost."""
    low = soxr.resample(waveform, sample_rate, rate)
    return _within_range(_fit(soxr.resample(low, rate, sample_rate), len(waveform)))


def enhance_speech(waveform: Floats) -> Floats:
    """Reduces steady noise, as the software of telephones does, with its typical loss of faint detail."""
    return _within_range(reduce_noise(waveform))


def mask_log_mel(
    log_mel: Floats,
    time_masks: int,
    time_mask_max_frames: int,
    freq_masks: int,
    freq_mask_max_bins: int,
    rng: np.random.Generator,
) -> Floats:
    """Masks blocks of time and of frequency with the mean of the log-mel, float32 [mel bins, frames].

    A mask is 1 to `*_max_*` wide, and may lie on another. In a short clip masks are narrower: together they never take
    more than a fifth of the frames nor half of the bins.

    Source: Park et al. 2019, "SpecAugment" (arXiv 1904.08779), with its p = 0.2. The features there have zero mean and
    the masks are 0: the mean, therefore, which also keeps clear of the value that means padding.
    """
    masked = log_mel.copy()
    mean = log_mel.mean(dtype=np.float64)
    bins, frames = log_mel.shape
    for start, stop in _mask_spans(frames, time_masks, time_mask_max_frames, _LONGEST_TIME_MASK, rng):
        masked[:, start:stop] = mean
    for start, stop in _mask_spans(bins, freq_masks, freq_mask_max_bins, _WIDEST_FREQ_MASK, rng):
        masked[start:stop] = mean
    return masked


@dataclass(frozen=True)
class Step:
    """One augmentation with its option: a factor, a distance, a colour and a gain; empty for those without options."""

    name: str
    option: tuple[float | str, ...] = ()

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
    """Chooses augmentations and applies them. One per worker process: it holds decoded noise and impulse responses.

    Args:
        config: the options.
        cache_dir: where `prepare` has put the impulse responses; they are made here if it has not.
        max_samples: the model's window. No change of speed makes a recording longer.

    Raises:
        UserError: background noise that cannot be read, or a cache folder that cannot be written.
    """

    def __init__(self, config: AudioAugmentationConfig, cache_dir: Path, max_samples: int) -> None:
        self.config = config
        self.max_samples = max_samples
        self.enabled = enabled_augmentations(config)
        """Names of the augmentations that take part, in rotation order."""
        self.options = {name: _options(config, name) for name in self.enabled}
        self._rooms = _room_bank(config, cache_dir) if "far_field" in self.enabled else {}
        if "background_noise" in self.enabled:
            self._noises = NoiseRecordings(config.bg_noise_file_list, config.sample_rate)

    def choose(self, turn: int, samples: int, rng: np.random.Generator) -> Choice:
        """What to do to a copy of a recording.

        In round robin, turn by turn, one augmentation after the other, and after each round the next option of each.
        With `multiple_aug`, each by its probability, with any of its options.

        Args:
            turn: 0 or more.
            samples: of the recording. A speed that would make it too long for the window gives way to the next one.
            rng: read with `multiple_aug` only.
        """
        if self.config.multiple_aug:
            fired = [
                (name, int(rng.integers(2**31))) for name in self.enabled if rng.random() < self._probability(name)
            ]
        else:
            fired = [(self.enabled[turn % len(self.enabled)], turn // len(self.enabled))] if self.enabled else []
        return Choice(tuple(self._step(name, number, samples) for name, number in fired))

    def apply_waveform(self, waveform: Floats, choice: Choice, rng: np.random.Generator) -> Floats:
        """The steps of `choice` that change the waveform, float32 [samples] → float32 [samples]."""
        for step in choice.steps:
            waveform = self._apply(step, waveform, rng)
        return waveform

    def apply_log_mel(self, log_mel: Floats, choice: Choice, rng: np.random.Generator) -> Floats:
        """The step of `choice` that changes the log-mel, if any, float32 [mel bins, frames] → the same shape."""
        c = self.config
        if Step("masking") not in choice.steps:
            return log_mel
        return mask_log_mel(log_mel, c.time_masks, c.time_mask_max_frames, c.freq_masks, c.freq_mask_max_bins, rng)

    def _apply(self, step: Step, waveform: Floats, rng: np.random.Generator) -> Floats:
        rate = self.config.sample_rate
        match step.name, step.option:
            case "speed", (float(factor),):
                return change_speed(waveform, factor, rate)
            case "pitch_shift", (float(semitones),):
                return shift_pitch(waveform, semitones, rate)
            case "far_field", (float(distance_m),):
                rooms = self._rooms[distance_m]
                return add_far_field(waveform, rooms[rng.integers(len(rooms))])
            case "background_noise", (float(focus),):
                return mix_background(waveform, self._noises.crop(len(waveform), rng), focus)
            case "color_noise", (str(color), float(gain)):
                return add_color_noise(waveform, color, gain, rate, rng)
            case "down_upsampling", (float(low_rate),):
                return down_upsample(waveform, int(low_rate), rate)
            case "speech_enhancement", ():
                return enhance_speech(waveform)
            case "masking", ():
                return waveform
        raise ValueError(
            f"no augmentation {step}: expected one of {', '.join(AUGMENTATIONS)} with an option of its own"
        )

    def _probability(self, name: str) -> float:
        return float(getattr(self.config, AUGMENTATIONS[name]))

    def _step(self, name: str, number: int, samples: int) -> Step:
        options = self.options[name]
        rotated = [options[(number + i) % len(options)] for i in range(len(options))]
        if name == "speed":
            rotated = [o for o in rotated if stretched_samples(samples, float(o[0])) <= self.max_samples] or [(1.0,)]
        return Step(name, rotated[0])


class CopyAugmenter:
    """The augmentations of one copy of a recording: chosen when its length is known, then applied."""

    def __init__(self, augmentations: AudioAugmentations, turn: int, rng: np.random.Generator) -> None:
        """
        Args:
            augmentations: chooses and applies them.
            turn: where the round robin stands.
            rng: source of all that is random in this copy.
        """
        self._augmentations, self._turn, self._rng = augmentations, turn, rng
        self.choice = Choice()
        """What is done; nothing before `augment_waveform`."""

    def augment_waveform(self, waveform: Floats) -> Floats:
        """float32 `[samples]` → the same, of another length after a change of speed."""
        self.choice = self._augmentations.choose(self._turn, len(waveform), self._rng)
        return self._augmentations.apply_waveform(waveform, self.choice, self._rng)

    def augment_log_mel(self, log_mel: Floats) -> Floats:
        """float32 `[mel bins, frames]` → the same shape."""
        return self._augmentations.apply_log_mel(log_mel, self.choice, self._rng)

    @property
    def label(self) -> str:
        """What was done: "speed=0.9", or "none"."""
        return self.choice.label


def prepared_files(config: AudioAugmentationConfig, cache_dir: Path) -> dict[str, bytes]:
    """What `prepare` has left in the cache, for workers that do not share it: file name → content."""
    if "far_field" not in enabled_augmentations(config):
        return {}
    distances_m = [float(distance) for distance in config.far_field_distances]
    bank = room_bank_path(cache_dir, distances_m, config.far_field_rooms, config.sample_rate)
    return {bank.name: bank.read_bytes()}


def enabled_augmentations(config: AudioAugmentationConfig) -> tuple[str, ...]:
    """Names of those with a probability above 0, in rotation order; background noise only where there are files."""
    return tuple(
        name
        for name, prob in AUGMENTATIONS.items()
        if getattr(config, prob) > 0 and (name != "background_noise" or config.bg_noise_file_list)
    )


def prepare(config: AudioAugmentationConfig, cache_dir: Path) -> None:
    """Does in the parent process what the workers shall not each do: makes the rooms, checks the noise, warns.

    Raises:
        UserError: background noise that cannot be read, or a cache folder that cannot be written.
    """
    if config.bg_noise_aug_prob > 0 and not config.bg_noise_file_list:
        logger.warning(
            "no background noise: audio_augmentation.bg_noise_file_list is empty, so that augmentation is left out "
            "(name audio files or folders there, or set audio_augmentation.bg_noise_aug_prob to 0)"
        )
    AudioAugmentations(config, cache_dir, max_samples=0)


def fingerprint(config: AudioAugmentationConfig) -> str:
    """A digest of what decides the samples besides the configuration: this code's version, the rooms', the noise files.

    Raises:
        UserError: noise files that are not there.
    """
    facts: list[object] = [VERSION, BANK_VERSION]
    if "background_noise" in enabled_augmentations(config):
        facts += [(path.name, path.stat().st_size) for path in list_noise_files(config.bg_noise_file_list)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _options(config: AudioAugmentationConfig, name: str) -> Sequence[tuple[float | str, ...]]:
    if name == "color_noise":
        gains = map(float, config.noise_gain_min_max)
        return [(color, gain) for gain, color in itertools.product(gains, config.noise_colors)]
    values: dict[str, Sequence[float]] = {
        "speed": config.speed_factors,
        "pitch_shift": config.pitch_shift_range,
        "far_field": config.far_field_distances,
        "background_noise": config.bg_noise_focus_min_max,
        "down_upsampling": config.down_upsampling_min_max,
    }
    return [(float(value),) for value in values[name]] if name in values else [()]


def _room_bank(config: AudioAugmentationConfig, cache_dir: Path) -> dict[float, list[Room]]:
    distances_m = [float(distance) for distance in config.far_field_distances]
    bank = load_room_bank(cache_dir, distances_m, config.far_field_rooms, config.sample_rate)
    return {distance_m: [Room(response) for response in responses] for distance_m, responses in bank.items()}


def _add_noise(waveform: Floats, noise: Floats, ratio: float) -> Floats:
    speech_level, noise_level = rms(waveform), rms(noise)
    if min(speech_level, noise_level) < SILENCE_RMS:
        return waveform.copy()
    return _within_range(waveform + noise * np.float32(ratio * speech_level / noise_level))


def _mask_spans(size: int, masks: int, widest: int, share: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    widest = min(widest, int(size * share / max(masks, 1)))
    spans = []
    for _ in range(masks if widest else 0):
        width = int(rng.integers(1, widest + 1))
        start = int(rng.integers(size - width + 1))
        spans.append((start, start + width))
    return spans


def _fit(waveform: Floats, samples: int) -> Floats:
    return waveform[:samples] if len(waveform) >= samples else np.pad(waveform, (0, samples - len(waveform)))


def _within_range(waveform: Floats) -> Floats:
    peak = max(waveform.max(), -waveform.min())
    return waveform / peak if peak > 1 else waveform
