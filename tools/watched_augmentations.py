"""The augmentations of a run, watched: what was drawn in each step, and what the sound was before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audio.augmentation_registry import enabled_rows
from audioaugmentations import AudioAugmentations, Choice, CopyAugmenter, Step
from data_processor import ORIGINAL

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StepTrace:
    """What happened in one step."""

    step: Step
    draws: tuple[int, ...]
    """The whole numbers that it drew, in their order: the first of a far field is the room."""
    before: Floats
    """Waveform, or log-mel."""
    after: Floats


class CountingGenerator(np.random.Generator):
    """Draws what another generator would have drawn, on the same state, and keeps the whole numbers."""

    def __init__(self, watched: np.random.Generator) -> None:
        super().__init__(watched.bit_generator)
        self.drawn: list[int] = []

    def integers(self, *arguments: Any, **options: Any) -> Any:
        """As numpy's."""
        number = super().integers(*arguments, **options)
        self.drawn += np.ravel(number).tolist()
        return number


class WatchedAugmentations(AudioAugmentations):
    """Applies augmentations as `AudioAugmentations` does, a step at a time, and keeps a trace of each step."""

    def apply_waveform(self, waveform: Floats, choice: Choice, rng: np.random.Generator) -> Floats:
        """As of the class above."""
        for step in self._steps(choice, "waveform"):
            counting = CountingGenerator(rng)
            after = super().apply_waveform(waveform, Choice((step,)), counting)
            self.traces.append(StepTrace(step, tuple(counting.drawn), waveform, after))
            waveform = after
        return waveform

    def apply_log_mel(self, log_mel: Floats, choice: Choice, rng: np.random.Generator) -> Floats:
        """As of the class above."""
        for step in self._steps(choice, "log-mel"):
            counting = CountingGenerator(rng)
            after = super().apply_log_mel(log_mel, Choice((step,)), counting)
            self.traces.append(StepTrace(step, tuple(counting.drawn), log_mel, after))
            log_mel = after
        return log_mel

    def start(self) -> list[StepTrace]:
        """A list for the traces of one copy."""
        self.traces: list[StepTrace] = []
        return self.traces

    def _steps(self, choice: Choice, changes: str) -> list[Step]:
        kinds = {row.name: row.changes for row in enabled_rows(self.config)}
        return [step for step in choice.steps if kinds[step.name] == changes]


class CopyWatcher:
    """An augmenter for `data_processor.make_sample` that keeps what goes through it."""

    def __init__(self, watched: WatchedAugmentations, turn: int, rng: np.random.Generator, *, original: bool) -> None:
        """
        Args:
            watched: chooses and applies.
            turn: of the round robin.
            rng: source of all that is random in this copy.
            original: whether nothing is done to this copy.
        """
        self.traces = watched.start()
        """What happened, step by step."""
        self._augmenter = None if original else CopyAugmenter(watched, turn, rng)
        empty = np.zeros(0, np.float32)
        self.recording, self.heard, self.unmasked = empty, empty, empty
        """The waveform as it was decoded, what became of it, and its log-mel before masks."""

    def augment_waveform(self, waveform: Floats) -> Floats:
        """As of `CopyAugmenter`."""
        self.recording = waveform
        self.heard = self._augmenter.augment_waveform(waveform) if self._augmenter else waveform
        return self.heard

    def augment_log_mel(self, log_mel: Floats) -> Floats:
        """As of `CopyAugmenter`."""
        self.unmasked = log_mel
        return self._augmenter.augment_log_mel(log_mel) if self._augmenter else log_mel

    @property
    def label(self) -> str:
        """What was done: "speed=0.9", "none", or "original"."""
        return self._augmenter.label if self._augmenter else ORIGINAL
