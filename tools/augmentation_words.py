"""What the preview says of each augmentation: what it is, which fields of config.py govern it, and what was drawn.

An augmentation that is not in `WORDS`, such as a transform of the user's, is shown by its name and its bare options.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from audio.augmentation_registry import Augmentation
from audio.extra_transforms import parse_transform
from audio.noise_sources import NoiseRecordings
from audio.room_acoustics import load_room_bank
from config import AudioAugmentationConfig
from tools.watched_augmentations import StepTrace


@dataclass
class Sources:
    """Where rooms and noise of a configuration come from; loaded when they are asked for."""

    config: AudioAugmentationConfig
    cache_dir: Path

    @cached_property
    def rooms(self) -> dict[float, list[np.ndarray]]:
        """Distance in metres → impulse responses."""
        distances_m = [float(distance_m) for distance_m in self.config.far_field_distances]
        return load_room_bank(self.cache_dir, distances_m, self.config.far_field_rooms, self.config.sample_rate)

    @cached_property
    def noises(self) -> NoiseRecordings:
        """The background noise."""
        return NoiseRecordings(self.config.bg_noise_file_list, self.config.sample_rate)


@dataclass(frozen=True)
class Words:
    """What is said of an augmentation."""

    title: str
    text: str
    fields: tuple[str, ...] = ()
    """Of `AudioAugmentationConfig`, besides its probability."""
    drawn: Callable[[StepTrace, Sources], str] = lambda trace, sources: _bare_options(trace)
    """What was drawn in a step."""


def words_of(row: Augmentation, config: AudioAugmentationConfig) -> Words:
    """What is said of an augmentation of the registry, or of the user's."""
    if row.name in WORDS:
        return WORDS[row.name]
    entries = {text: parse_transform(text).class_name for text in config.extra_transforms}
    entry = next((text for text, name in entries.items() if row.name.partition("#")[0] == name), row.name)
    return Words(row.name, f"A transform of your own: {entry}", ("extra_transforms",))


def field_meanings(settings: type) -> dict[str, str]:
    """What the source of a dataclass says below each of its fields."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    meanings = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            meanings[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return meanings


def reverberation_s(response: np.ndarray, sampling_rate: int) -> float:
    """Reverberation time of a room (RT60) by its impulse response, float32 `[taps]`, in seconds.

    Source: Schroeder 1965, "New method of measuring reverberation time": backward integration; ISO 3382: the decay
    from -5 to -25 dB, times three.
    """
    energy = np.cumsum(np.square(response, dtype=np.float64)[::-1])[::-1]
    level_db = 10 * np.log10(energy / energy[0])
    return 3 * float(np.argmax(level_db <= -25) - np.argmax(level_db <= -5)) / sampling_rate


def _bare_options(trace: StepTrace) -> str:
    return ", ".join(map(str, trace.step.option)) or "no option"


def _speed(trace: StepTrace, sources: Sources) -> str:
    before_s, after_s = (len(waveform) / sources.config.sample_rate for waveform in (trace.before, trace.after))
    return f"factor {trace.step.option[0]:g}: {before_s:.2f} s become {after_s:.2f} s"


def _pitch_shift(trace: StepTrace, sources: Sources) -> str:
    return f"{float(trace.step.option[0]):+g} semitones"


def _far_field(trace: StepTrace, sources: Sources) -> str:
    distance_m, room = float(trace.step.option[0]), trace.draws[0]
    rooms = sources.rooms[distance_m]
    decay_s = reverberation_s(rooms[room], sources.config.sample_rate)
    return f"{distance_m:g} m, room {room + 1} of {len(rooms)}, reverberation {decay_s:.2f} s"


def _background_noise(trace: StepTrace, sources: Sources) -> str:
    focus = float(trace.step.option[0])
    ratio_db = 20 * math.log10(focus / (1 - focus))
    return f"SNR {ratio_db:.1f} dB (focus {focus:g}), {sources.noises.file(trace.draws[0]).name}"


def _color_noise(trace: StepTrace, sources: Sources) -> str:
    color, gain = trace.step.option
    return f"{color}, SNR {-20 * math.log10(float(gain)):.1f} dB (gain {gain:g})"


def _down_upsampling(trace: StepTrace, sources: Sources) -> str:
    rate_hz = float(trace.step.option[0])
    return f"to {rate_hz:g} Hz and back: nothing above {rate_hz / 2:g} Hz is left"


def _masking(trace: StepTrace, sources: Sources) -> str:
    masked = trace.after == np.float32(trace.before.mean(dtype=np.float64))
    frames, bins = int(masked.all(axis=0).sum()), int(masked.all(axis=1).sum())
    return f"{frames} of {masked.shape[1]} frames and {bins} of {masked.shape[0]} mel bins masked"


WORDS = {
    "speed": Words(
        "Speed", "Another tempo at the same pitch. Nothing is cut off, so the recording's length changes.",
        ("speed_factors",), _speed,
    ),
    "pitch_shift": Words("Pitch shift", "Another pitch at the same tempo.", ("pitch_shift_range",), _pitch_shift),
    "far_field": Words(
        "Far field", "A distant microphone in a simulated room: the same level, with the room's reverberation.",
        ("far_field_distances", "far_field_rooms"), _far_field,
    ),
    "background_noise": Words(
        "Background noise", "A random stretch of your noise files, mixed in at a fixed signal-to-noise ratio (SNR).",
        ("bg_noise_file_list", "bg_noise_focus_min_max"), _background_noise,
    ),
    "color_noise": Words(
        "Coloured noise", "Synthetic steady noise, mixed in at a fixed signal-to-noise ratio (SNR).",
        ("noise_colors", "noise_gain_min_max"), _color_noise,
    ),
    "down_upsampling": Words(
        "Down- and up-sampling", "An old microphone or a narrow line: what lies above half of the lower rate is lost.",
        ("down_upsampling_min_max",), _down_upsampling,
    ),
    "speech_enhancement": Words(
        "Speech enhancement", "Steady noise is reduced, as telephones do it, with the typical loss of faint detail.",
    ),
    "masking": Words(
        "Time and frequency masks",
        "Blocks of the log-mel are replaced by its mean (SpecAugment). The sound is what it was: only the model's "
        "picture of it has holes.",
        ("time_masks", "time_mask_max_frames", "freq_masks", "freq_mask_max_bins"), _masking,
    ),
}  # fmt: skip
"""Name in the registry → words."""
