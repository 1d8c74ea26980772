"""What a worker does: it turns tasks into encoded samples.

A worker knows the recipe, but neither the order of the stream nor the list of recordings, which may have millions of
rows: a task brings what the plan says of its samples. So a worker is small and starts fast, and may run on a machine
that has nothing of the producer's but the audio.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import audioaugmentations
from audio.audio_file import RecordingError
from audio.extra_transforms import TransformError
from audioaugmentations import AudioAugmentations, CopyAugmenter
from common.errors import UserError, one_line
from common.redaction import without_secrets
from config import AudioAugmentationConfig, Config
from corpus.recordings import Recording
from corpus.rejected_report import LateRejection
from data_processor import ORIGINAL, SampleSettings, make_sample
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from features.sample import Sample, encode_sample
from producing.plan import ORIGINAL_VARIANT, Draw, Plan
from storage.audio_sources import reading_ahead

logger = logging.getLogger(__name__)


class OutsideFactsError(UserError):
    """A worker finds other background noise, or another transform, than the producer."""


class SampleError(UserError):
    """A sample can't be made, for a reason that is not in its recording's file."""


@dataclass(frozen=True)
class WorkerRecipe:
    """All that a worker must know besides its tasks. Picklable, a few MB."""

    config: Config
    plan: Plan
    spec: FeatureSpec
    encoder: TranscriptEncoder
    fingerprint: str
    outside_facts: dict[str, str]
    """What the augmentations depend on besides the configuration (`audioaugmentations.outside_facts`)."""
    prepared: dict[str, bytes]
    """Files that the producer has made for the augmentations, name → content: the simulated rooms. Sent along, so that
    no worker makes them again, in another way on another kind of CPU."""


@dataclass(frozen=True)
class SampleTask:
    """One sample to make."""

    draw: Draw
    recordings: tuple[Recording, ...]
    """The first of them that can be decoded is taken."""


@dataclass
class Chunk:
    """Encoded samples, of consecutive positions when it leaves the worker pool."""

    start: int
    """Position of the first."""
    payloads: list[bytes] = field(default_factory=list)
    """Empty for a sample none of whose recordings can be decoded: the pool puts that right."""
    rejected: list[str] = field(default_factory=list)
    """JSON lines for the rejected report: recordings that failed to decode and were replaced."""
    augmentations: Counter[str] = field(default_factory=Counter)
    """Samples per augmentation, "original" among them."""
    corpora: Counter[str] = field(default_factory=Counter)
    """Samples per corpus of a mixture, by name; empty for a corpus of its own."""
    notes: Counter[str] = field(default_factory=Counter)
    """Samples whose audio was read in a way that the report tells, such as one channel of several."""
    audio_s: float = 0.0
    """Duration of the audio in all samples, in seconds."""


class SampleWorker:
    """Makes samples. Holds what is expensive to load, so that each process, or thread, has one of its own."""

    def __init__(self, recipe: WorkerRecipe) -> None:
        """
        Raises:
            UserError: the background noise or a transform is missing here, or differs from the producer's.
        """
        self._recipe = recipe
        augmentation = recipe.config.audio_augmentation
        _compare_outside_facts(augmentation, recipe.outside_facts)
        with tempfile.TemporaryDirectory() as folder:  # the augmentations load what it holds at once
            for name, content in recipe.prepared.items():
                (Path(folder) / name).write_bytes(content)
            self._augmentations = AudioAugmentations(augmentation, Path(folder), recipe.spec.window_samples)
        data = recipe.config.data
        self._settings = SampleSettings(recipe.spec, recipe.encoder, data, data.feature_dtype, recipe.fingerprint)

    def make(self, tasks: Sequence[SampleTask]) -> Chunk:
        """The samples of these tasks, at least one, in their order."""
        chunk = Chunk(tasks[0].draw.position)
        with reading_ahead((task.recordings[0].audio for task in tasks), self._recipe.config.data):
            for task in tasks:
                sample = self._make_one(task, chunk)
                chunk.payloads.append(encode_sample(sample) if sample else b"")
        return chunk

    def _make_one(self, task: SampleTask, chunk: Chunk) -> Sample | None:
        """The sample of the first recording that can be decoded. The chunk counts it, and those that can't."""
        for recording in task.recordings:
            augmenter = self._augmenter(task.draw)
            notes: Counter[str] = Counter()
            try:
                sample = make_sample(recording, task.draw.position, self._settings, augmenter, notes)
            except RecordingError as error:
                rejection = LateRejection(
                    recording.row, recording.id, recording.audio, str(error), task.draw.position,
                    self._recipe.fingerprint,
                )  # fmt: skip
                chunk.rejected.append(rejection.to_json())
            except TransformError as error:
                raise _sample_error(task.draw.position, recording, augmenter, str(error)) from error
            except UserError:
                raise
            except Exception as error:
                logger.error("a sample can't be made", exc_info=True)
                reason = f"{type(error).__name__}: {one_line(error)}"
                raise _sample_error(task.draw.position, recording, augmenter, reason) from error
            else:
                names = [step.name for step in augmenter.choice.steps] if augmenter else [ORIGINAL]
                chunk.augmentations.update(names)
                chunk.corpora.update([recording.corpus] if recording.corpus else [])
                chunk.notes.update(notes)
                chunk.audio_s += sample.duration_s
                return sample
        return None

    def _augmenter(self, draw: Draw) -> CopyAugmenter | None:
        if draw.variant == ORIGINAL_VARIANT:
            return None
        return CopyAugmenter(self._augmentations, draw.turn, self._recipe.plan.generator(draw.position))


def _sample_error(position: int, recording: Recording, augmenter: CopyAugmenter | None, reason: str) -> SampleError:
    return SampleError(
        f"cannot make the sample at position {position} (recording {recording.id}, {without_secrets(recording.audio)}, "
        f"{augmenter.label if augmenter else ORIGINAL}): {reason}; leave the recording or the augmentation out, or "
        "report this as a fault; a traceback is in the worker's output"
    )


def _compare_outside_facts(config: AudioAugmentationConfig, expected: dict[str, str]) -> None:
    found = audioaugmentations.outside_facts(config)
    for name, fact in expected.items():
        if found.get(name) == fact:
            continue
        if name == "background_noise":
            raise OutsideFactsError(
                "the background noise here is not the producer's: expected files of the same names and sizes at "
                f"{', '.join(config.bg_noise_file_list)}; copy the producer's there, or share the folder"
            )
        raise OutsideFactsError(
            f"the code of {name} here is not the producer's: found {found.get(name)}, expected {fact}; copy the "
            "producer's there and start the worker again"
        )


_worker: SampleWorker | None = None
"""The worker of this process; None where no local worker process was started."""


def start_worker(recipe: WorkerRecipe) -> None:
    """Called first in a local worker process."""
    global _worker
    _worker = SampleWorker(recipe)


def make_samples(tasks: Sequence[SampleTask]) -> Chunk:
    """The task of a local worker process."""
    if _worker is None:
        raise RuntimeError("this process is no worker")
    return _worker.make(tasks)
