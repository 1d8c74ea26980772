"""The worker pool: processes that turn positions of the plan into encoded samples, handed over in order.

A worker that dies, even by kill -9 or for want of memory, takes nothing with it: another makes the same positions
again, to the same bytes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

import audioaugmentations
from audio_file import RecordingError
from audio_sources import reading_ahead
from audioaugmentations import AudioAugmentations, Choice
from config import Config
from data_processor import FeatureSpec, TranscriptEncoder, load_waveform, log_mel
from plan import ORIGINAL, Plan, fingerprint, make_plan
from process_executor import ProcessExecutor, WorkerError
from recordings import Recording, Recordings
from rejected_report import LateRejection
from sample import Sample, encode_sample

MAX_REPLACEMENTS = 20
"""Rows in a row that may fail to decode before the run stops: then the files are gone, not bad."""
HEARTBEAT_S = 1.0
"""How often a caller that waits for a chunk is called back, in seconds."""


@dataclass(frozen=True)
class Recipe:
    """All that a worker must know to make any sample of the stream. Picklable."""

    config: Config
    plan: Plan
    recordings: Recordings
    spec: FeatureSpec
    encoder: TranscriptEncoder
    fingerprint: str


def make_recipe(config: Config, recordings: Recordings, spec: FeatureSpec, encoder: TranscriptEncoder) -> Recipe:
    """The recipe of the stream of these recordings. Makes what the augmentations need once, such as simulated rooms."""
    augmentation = config.audio_augmentation
    audioaugmentations.prepare(augmentation, Path(config.data.cache_dir))
    mark = fingerprint(config, recordings, spec, encoder, audioaugmentations.fingerprint(augmentation))
    return Recipe(config, make_plan(config, recordings), recordings, spec, encoder, mark)


@dataclass
class Chunk:
    """Encoded samples of consecutive positions."""

    start: int
    """Position of the first."""
    payloads: list[bytes] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    """JSON lines for the rejected report: recordings that failed to decode and were replaced."""
    augmentations: Counter[str] = field(default_factory=Counter)
    """Samples per augmentation, "original" among them."""
    seconds: float = 0.0
    """Duration of the audio in all samples."""


class SampleMaker:
    """Makes samples. Holds what is expensive to load; each worker has one."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._augmentations = AudioAugmentations(
            recipe.config.audio_augmentation, Path(recipe.config.data.cache_dir), recipe.spec.window_samples
        )

    def make_chunk(self, start: int, stop: int) -> Chunk:
        """The samples at positions `start` to `stop` - 1.

        Raises:
            WorkerError: too many recordings in a row can't be decoded.
        """
        chunk, recipe = Chunk(start), self._recipe
        audios = (recipe.recordings[recipe.plan.draw(position).row].audio for position in range(start, stop))
        with reading_ahead(audios, recipe.config.data):
            for position in range(start, stop):
                sample, choice = self.make(position, chunk.rejected)
                chunk.payloads.append(encode_sample(sample))
                chunk.augmentations.update([step.name for step in choice.steps] if choice else ["original"])
                chunk.seconds += sample.duration_s
        return chunk

    def make(self, position: int, rejected: list[str]) -> tuple[Sample, Choice | None]:
        """The sample at `position`, and what was done to it (None: nothing, by plan).

        Args:
            position: its place in the plan.
            rejected: gets a line for each recording that could not be decoded and was replaced.
        """
        recipe, data = self._recipe, self._recipe.config.data
        draw = recipe.plan.draw(position)
        recording, waveform = self._load(position, draw.row, rejected)
        generator = recipe.plan.generator(position)
        choice = None
        if draw.variant != ORIGINAL:
            choice = self._augmentations.choose(draw.turn, len(waveform), generator)
            waveform = self._augmentations.apply_waveform(waveform, choice, generator)
        features, pad_value = log_mel(waveform, recipe.spec)
        if choice:
            features = self._augmentations.apply_log_mel(features, choice, generator)
        sample = Sample(
            input_features=features.astype(data.feature_dtype),
            labels=recipe.encoder.encode(recording.transcript),
            position=position,
            id=recording.id,
            pad_value=pad_value,
            augmentation=choice.label if choice else "original",
            duration_s=len(waveform) / recipe.spec.sampling_rate,
            plan=recipe.fingerprint,
        )
        return sample, choice

    def _load(self, position: int, row: int, rejected: list[str]) -> tuple[Recording, np.ndarray]:
        """The planned recording and its waveform, or the first decodable one of its replacements."""
        for attempt in range(1, MAX_REPLACEMENTS + 1):
            recording = self._recipe.recordings[row]
            try:
                return recording, load_waveform(recording.audio, self._recipe.spec, self._recipe.config.data)
            except RecordingError as error:
                rejection = LateRejection(
                    recording.row, recording.id, recording.audio, str(error), position, self._recipe.fingerprint
                )
                rejected.append(rejection.to_json())
                row = self._recipe.plan.replacement(position, attempt)
        raise WorkerError(
            f"{MAX_REPLACEMENTS} recordings in a row can't be decoded: is the disk still mounted? Last: {rejected[-1]}"
        )


class WorkerPool:
    """Makes chunks ahead, in several processes, and hands them over in the order of their positions."""

    def __init__(self, recipe: Recipe, workers: int) -> None:
        self._recipe, self._workers = recipe, workers
        self._pending: deque[tuple[int, Future[Chunk]]] = deque()
        self._executor: Executor = ProcessExecutor(workers, _start_worker, (recipe,))

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def chunk_at(self, position: int, heartbeat: Callable[[], None]) -> Chunk:
        """The chunk that begins at `position`.

        Asking for consecutive positions is fast; any other one drops what was made ahead.

        Args:
            position: its first position, below the plan's length.
            heartbeat: called every second while waiting.

        Raises:
            WorkerError: the workers keep dying, or can't decode anything.
        """
        if self._pending and self._pending[0][0] != position:
            for _, future in self._pending:
                future.cancel()
            self._pending.clear()
        self._submit_from(position)
        while True:
            try:
                chunk = self._pending[0][1].result(timeout=HEARTBEAT_S)
            except TimeoutError:
                heartbeat()
            else:
                self._pending.popleft()
                return chunk

    def _submit_from(self, position: int) -> None:
        """Keeps two chunks per worker under way, the first of them at `position`."""
        size, end = self._recipe.config.data.chunk_size, len(self._recipe.plan)
        start = self._pending[-1][0] + size if self._pending else position
        while len(self._pending) < 2 * self._workers and start < end:
            self._pending.append((start, self._executor.submit(_make_chunk, start, min(start + size, end))))
            start += size


_maker: SampleMaker | None = None
"""This worker's own; None in any other process."""


def _start_worker(recipe: Recipe) -> None:
    global _maker
    _maker = SampleMaker(recipe)


def _make_chunk(start: int, stop: int) -> Chunk:
    if _maker is None:
        raise RuntimeError("this process is no worker")
    return _maker.make_chunk(start, stop)
