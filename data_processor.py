"""The one way from a recording to a sample: decode, augment, log-mel, labels.

The workers of the producer, the evaluation and the tools all use it: what a person hears or sees of a sample is what
is trained. Nothing here imports torch or an augmentation: the caller hands in what augments.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from audio.audio_file import RecordingError
from audio.part import Part
from audio.waveform import load_waveform
from config import DataConfig
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from features.log_mel import log_mel
from features.sample import Sample

ORIGINAL = "original"
"""What a sample without augmentation is called in records and reports."""


class LabelledRecording(Protocol):
    """What is needed of a recording; `corpus.recordings.Recording` is one."""

    @property
    def id(self) -> str:
        """Its name in reports."""

    @property
    def audio(self) -> str:
        """Locator of its audio, see `storage.audio_sources`."""

    @property
    def transcript(self) -> str:
        """What is said in it."""

    @property
    def language(self) -> str:
        """Its own language, as Whisper names it; empty: the run's."""

    @property
    def task(self) -> str:
        """Its own task, transcribe or translate; empty: the run's."""

    @property
    def part(self) -> Part:
        """Which part of the audio it is."""

    @property
    def claimed_duration_s(self) -> float | None:
        """How long it is by the manifest, in seconds; None: the manifest does not say."""


class Augmenter(Protocol):
    """What is done to one copy of a recording; `audioaugmentations.CopyAugmenter` is one."""

    def augment_waveform(self, waveform: np.ndarray) -> np.ndarray:
        """float32 `[samples]` within ±1 → the same, of any length that the model's window holds. Called first, once."""

    def augment_log_mel(self, log_mel: np.ndarray) -> np.ndarray:
        """float32 `[mel bins, frames]` → the same shape. Called second, once."""

    @property
    def label(self) -> str:
        """What was done, for records and reports: "speed=0.9"."""


@dataclass(frozen=True)
class SampleSettings:
    """What all samples of a run have in common. Picklable."""

    spec: FeatureSpec
    encoder: TranscriptEncoder
    data: DataConfig
    """How recordings are read."""
    feature_dtype: str = "float32"
    """Number format of the features: float16 or float32."""
    plan: str = ""
    """Fingerprint of the plan that the samples belong to; empty for samples that never see the queue."""
    refuse_silence: bool = True
    """Whether a recording whose samples are all 0 is refused, since nobody says its transcript in it."""


def make_sample(
    recording: LabelledRecording, position: int, settings: SampleSettings, augmenter: Augmenter | None = None,
    notes: Counter[str] | None = None,
) -> Sample:  # fmt: skip
    """Makes a recording's sample.

    Args:
        recording: what is said, and where it lies.
        position: the sample's place in the plan, or in the evaluation manifest.
        settings: what all samples of the run have in common.
        augmenter: what is done to this copy; None: nothing.
        notes: counts how the audio was read where a report should tell (`audio.waveform.CANCELLED`).

    Raises:
        RecordingError: the recording can't be decoded, or is empty, too short, too long or damaged.
        SourceError: its store can't be reached.
    """
    spec = settings.spec
    claimed_s = recording.claimed_duration_s
    waveform = load_waveform(
        recording.audio, spec, settings.data, recording.part, expected_duration_s=claimed_s, counts=notes
    )
    if settings.refuse_silence and not waveform.any():
        raise RecordingError("silence: all samples are 0")
    if augmenter:
        waveform = augmenter.augment_waveform(waveform)
    features, pad_value = log_mel(waveform, spec)
    if augmenter:
        features = augmenter.augment_log_mel(features)
    return Sample(
        input_features=features.astype(settings.feature_dtype, copy=False),
        labels=settings.encoder.encode(recording.transcript, recording.language, recording.task),
        position=position,
        id=recording.id,
        pad_value=pad_value,
        augmentation=augmenter.label if augmenter else ORIGINAL,
        duration_s=len(waveform) / spec.sampling_rate,
        plan=settings.plan,
    )
