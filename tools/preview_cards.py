"""How a copy of a recording becomes a card of the preview: its sound, its pictures and what was drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from audio.augmentation_registry import Augmentation, enabled_rows
from config import AudioAugmentationConfig
from data_processor import ORIGINAL
from features.feature_spec import FeatureSpec
from features.log_mel import log_mel
from pages.picture import Levels, draw_sound, draw_window
from pages.preview_page import CaptionedPicture, Card, Setting
from pages.sound import make_sound
from tools.augmentation_words import Sources, field_meanings, words_of
from tools.watched_augmentations import CopyWatcher, StepTrace

GROUP = "audio_augmentation"
MASKED = "The lower log-mel is the upper one after masks: that is what the model sees."
SHOWN_DECADES = 8
"""Decades of energy from the darkest to the brightest colour: what Whisper keeps below the loudest cell."""


@dataclass(frozen=True)
class Copy:
    """A copy of a recording, made and watched."""

    watcher: CopyWatcher
    features: np.ndarray
    """float16 or float32 `[mel bins, frames]`: what the model gets."""
    pad_value: float

    @property
    def samples(self) -> int:
        """Of what is heard."""
        return len(self.watcher.heard)


@dataclass(frozen=True)
class CardMaker:
    """What the cards of one recording have in common."""

    spec: FeatureSpec
    config: AudioAugmentationConfig
    sources: Sources
    levels: Levels
    until_s: float
    """End of the axis of time of its pictures, in seconds."""

    def card(self, copy: Copy, title: str, facts: Iterable[tuple[str, str]] = (), *, window: bool = False) -> Card:
        """The card of a copy.

        Args:
            copy: what was made.
            title: above it.
            facts: below it.
            window: whether to show the model's whole window too.
        """
        watcher, alt = copy.watcher, f"{title}: waveform of {self._seconds(copy)}, and its log-mel"
        masked = not np.array_equal(watcher.unmasked.astype(copy.features.dtype), copy.features)
        picture = draw_sound(
            watcher.heard, [watcher.unmasked, copy.features] if masked else [copy.features], self.spec,
            until_s=self.until_s, levels=self.levels, alt=f"{alt} before and after masks" if masked else alt,
            reference=None if watcher.heard is watcher.recording else watcher.recording,
        )  # fmt: skip
        pictures = [CaptionedPicture(picture, MASKED if masked else "")]
        if window:
            pictures.append(self._window(copy))
        sound = make_sound(watcher.heard, self.spec.sampling_rate, title)
        return Card(title, watcher.label, sound, pictures, list(facts))

    def recording_card(self, watcher: CopyWatcher) -> Card:
        """The card of the recording as it was decoded, to compare with a copy of it."""
        waveform, title = watcher.recording, "The recording"
        features, _ = log_mel(waveform, self.spec)
        alt = f"{title}: waveform of {len(waveform) / self.spec.sampling_rate:.2f} s, and its log-mel"
        picture = draw_sound(waveform, [features], self.spec, until_s=self.until_s, levels=self.levels, alt=alt)
        sound = make_sound(waveform, self.spec.sampling_rate, title)
        return Card(title, ORIGINAL, sound, [CaptionedPicture(picture)])

    def title(self, trace: StepTrace) -> str:
        """What the augmentation of a step is called."""
        return words_of(self._row(trace), self.config).title

    def drawn(self, trace: StepTrace) -> str:
        """What was drawn in a step."""
        return words_of(self._row(trace), self.config).drawn(trace, self.sources)

    def governing(self, trace: StepTrace) -> list[Setting]:
        """The fields of config.py that govern a step."""
        row = self._row(trace)
        return [setting(self.config, GROUP, name) for name in (row.prob_field, *words_of(row, self.config).fields)]

    def _row(self, trace: StepTrace) -> Augmentation:
        return next(row for row in enabled_rows(self.config) if row.name == trace.step.name)

    def _window(self, copy: Copy) -> CaptionedPicture:
        window_s = self.spec.chunk_length_s
        picture = draw_window(
            copy.features, copy.pad_value, self.spec, levels=self.levels,
            alt=f"The model's window of {window_s} s, of which {self._seconds(copy)} hold audio",
        )  # fmt: skip
        caption = f"The model's whole window of {window_s} s: what follows the audio is one constant."
        return CaptionedPicture(picture, caption)

    def _seconds(self, copy: Copy) -> str:
        return f"{copy.samples / self.spec.sampling_rate:.2f} s"


def levels_of(log_mel: np.ndarray) -> Levels:
    """The colours' range for a recording and all that is made of it. Source of the scale: (log10 + 4) / 4."""
    high = float(log_mel.max())
    return Levels(high - SHOWN_DECADES / 4, high)


def setting(config: object, group: str, name: str) -> Setting:
    """A field of config.py, its value and its meaning."""
    value = json.dumps(getattr(config, name), ensure_ascii=False)
    return Setting(f"{group}.{name}", value, field_meanings(type(config)).get(name, ""))
