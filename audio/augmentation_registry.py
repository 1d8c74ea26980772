"""The registry of augmentations: one row for each that the round robin or `multiple_aug` chooses from.

A new augmentation is a pure function in a module of this room (or of `features`, for the log-mel), a row here, and its
settings in `config.AudioAugmentationConfig`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from audio.effects import (
    add_color_noise,
    add_far_field,
    change_speed,
    down_upsample,
    enhance_speech,
    mix_background,
    shift_pitch,
)
from audio.extra_transforms import ExtraTransform, TransformSpec, identity, label_transforms, parse_transform
from audio.noise_sources import NoiseRecordings, list_noise_files
from audio.room_acoustics import Room, load_room_bank, room_bank_path
from audio.time_stretch import stretched_samples
from config import AudioAugmentationConfig
from features.masking import mask_log_mel

Floats = NDArray[np.float32]
Option = tuple[float | str, ...]
"""A factor, a distance, a colour and a gain; empty for an augmentation without options."""
Effect = Callable[[Floats, Option, np.random.Generator], Floats]
"""What an augmentation does: waveform or log-mel, option, source of all randomness → waveform or log-mel."""


@dataclass(frozen=True)
class Augmentation:
    """A row of the registry."""

    name: str
    """In labels, counts and reports."""
    prob_field: str
    """Field of `AudioAugmentationConfig` with its probability; 0 leaves it out."""
    options: Callable[[AudioAugmentationConfig], Sequence[Option]]
    """Its options, in the order of the rotation, at least one."""
    make_effect: Callable[[AudioAugmentationConfig, Path], Effect]
    """Loads what it needs (rooms, noise; `Path` is the cache folder) and returns what it does. Once per worker."""
    changes: Literal["waveform", "log-mel"] = "waveform"
    samples_after: Callable[[int, Option], int] | None = None
    """Samples of the result, known before anything is decoded. None: as many as before."""
    same_length_option: Option = ()
    """With `samples_after`: the option that leaves the length, taken when no other fits the window."""
    needed_field: str = ""
    """Field of `AudioAugmentationConfig` without whose content the augmentation is left out."""
    cache_files: Callable[[AudioAugmentationConfig, Path], Sequence[Path]] = lambda config, cache_dir: ()
    """Files that `make_effect` leaves in the cache folder, for workers that do not share it."""
    facts: Callable[[AudioAugmentationConfig], Sequence[object]] = lambda config: ()
    """What decides its result besides the configuration, such as the content of files. Part of the fingerprint."""

    def is_enabled(self, config: AudioAugmentationConfig) -> bool:
        """Whether it takes part: its probability is above 0, and it has what it needs."""
        return self.probability(config) > 0 and bool(not self.needed_field or getattr(config, self.needed_field))

    def probability(self, config: AudioAugmentationConfig) -> float:
        """How often it fires with `multiple_aug`, 0 to 1."""
        return float(getattr(config, self.prob_field))


def _no_options(config: AudioAugmentationConfig) -> list[Option]:
    return [()]


def _each_of(field: str) -> Callable[[AudioAugmentationConfig], list[Option]]:
    return lambda config: [(float(value),) for value in getattr(config, field)]


def _gains_and_colors(config: AudioAugmentationConfig) -> list[Option]:
    gains = map(float, config.noise_gain_min_max)
    return [(color, gain) for gain, color in itertools.product(gains, config.noise_colors)]


def _speed(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    return lambda waveform, option, rng: change_speed(waveform, float(option[0]), config.sample_rate)


def _pitch_shift(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    return lambda waveform, option, rng: shift_pitch(waveform, float(option[0]), config.sample_rate)


def _far_field(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    bank = load_room_bank(cache_dir, _distances_m(config), config.far_field_rooms, config.sample_rate)
    rooms = {distance_m: [Room(response) for response in responses] for distance_m, responses in bank.items()}

    def effect(waveform: Floats, option: Option, rng: np.random.Generator) -> Floats:
        at_distance = rooms[float(option[0])]
        return add_far_field(waveform, at_distance[rng.integers(len(at_distance))])

    return effect


def _room_files(config: AudioAugmentationConfig, cache_dir: Path) -> list[Path]:
    return [room_bank_path(cache_dir, _distances_m(config), config.far_field_rooms, config.sample_rate)]


def _distances_m(config: AudioAugmentationConfig) -> list[float]:
    return [float(distance_m) for distance_m in config.far_field_distances]


def _background_noise(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    noises = NoiseRecordings(config.bg_noise_file_list, config.sample_rate)
    return lambda waveform, option, rng: mix_background(waveform, noises.crop(len(waveform), rng), float(option[0]))


def _noise_files(config: AudioAugmentationConfig) -> list[object]:
    return [(path.name, path.stat().st_size) for path in list_noise_files(config.bg_noise_file_list)]


def _color_noise(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    return lambda waveform, option, rng: add_color_noise(
        waveform, str(option[0]), float(option[1]), config.sample_rate, rng
    )


def _down_upsampling(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    return lambda waveform, option, rng: down_upsample(waveform, int(option[0]), config.sample_rate)


def _speech_enhancement(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    return lambda waveform, option, rng: enhance_speech(waveform)


def _masking(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
    c = config
    return lambda log_mel, option, rng: mask_log_mel(
        log_mel, c.time_masks, c.time_mask_max_frames, c.freq_masks, c.freq_mask_max_bins, rng
    )


_ROWS = (
    Augmentation(
        "speed", "speed_aug_prob", _each_of("speed_factors"), _speed,
        samples_after=lambda samples, option: stretched_samples(samples, float(option[0])), same_length_option=(1.0,),
    ),
    Augmentation("pitch_shift", "pitch_shift_prob", _each_of("pitch_shift_range"), _pitch_shift),
    Augmentation(
        "far_field", "far_field_effect_prob", _each_of("far_field_distances"), _far_field, cache_files=_room_files,
    ),
    Augmentation(
        "background_noise", "bg_noise_aug_prob", _each_of("bg_noise_focus_min_max"), _background_noise,
        needed_field="bg_noise_file_list", facts=_noise_files,
    ),
    Augmentation("color_noise", "color_noise_prob", _gains_and_colors, _color_noise),
    Augmentation("down_upsampling", "down_upsampling_prob", _each_of("down_upsampling_min_max"), _down_upsampling),
    Augmentation("speech_enhancement", "speech_enhance_prob", _no_options, _speech_enhancement),
    Augmentation("masking", "time_n_freq_masking_prob", _no_options, _masking, changes="log-mel"),
)  # fmt: skip

AUGMENTATIONS = {row.name: row for row in _ROWS}
"""Name → row. The order is that of the rotation and, where several are applied, of what happens to speech on its way:
the speaker, the room, its noise, the microphone, the software behind it, the features."""

_OTHER_LABELS = ("original", "none")
"""What samples without augmentations are called."""


def extra_augmentations(config: AudioAugmentationConfig) -> list[Augmentation]:
    """The user's own transforms, in the order of `extra_transforms`. Imports none of them.

    Raises:
        ConfigurationError: an entry can't be parsed.
    """
    specs = [parse_transform(text) for text in config.extra_transforms]
    labels = label_transforms(specs, taken=(*AUGMENTATIONS, *_OTHER_LABELS))

    def make_row(spec: TransformSpec, label: str) -> Augmentation:
        def make_effect(config: AudioAugmentationConfig, cache_dir: Path) -> Effect:
            transform = ExtraTransform(spec, label, config.sample_rate)
            return lambda waveform, option, rng: transform(waveform, rng)

        return Augmentation(
            label, "extra_transforms_prob", _no_options, make_effect,
            facts=lambda config: [(spec.text, identity(spec))],
        )  # fmt: skip

    return [make_row(spec, label) for spec, label in zip(specs, labels, strict=True)]


def enabled_rows(config: AudioAugmentationConfig) -> list[Augmentation]:
    """What takes part under a configuration, in rotation order: the user's own before what changes the log-mel."""
    rows = [*AUGMENTATIONS.values(), *extra_augmentations(config)]
    rows.sort(key=lambda row: row.changes == "log-mel")  # stable
    return [row for row in rows if row.is_enabled(config)]
