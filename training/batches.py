"""What the trainer's DataLoaders read: batches from the queue to train on, and recordings to evaluate on.

A DataLoader asks for positions in order; its collator takes exactly those from the queue. That keeps Hugging Face's
own machinery (ranks, accumulation, workers that prefetch) and still trains every position once: the sampler decides
which samples a batch holds, not the order in which processes pop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, get_worker_info
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from audio.audio_file import RecordingError
from common.errors import UserError
from common.redaction import without_secrets
from corpus.recordings import Recordings
from data_processor import SampleSettings, make_sample
from features.sample import Sample, SampleLimits, decode_sample, pad_batch
from sample_queue.errors import StopRequested
from sample_queue.protocol import PlanCard
from sample_queue.reader import SampleReader
from storage.audio_sources import reading_ahead

RECORD = "record"
"""Key under which a batch carries its `BatchRecord` to the trainer, beside the model's inputs."""
FAILURE = "failure"
"""Key under which a DataLoader worker passes on the exception that was raised in it."""


class EvaluationError(UserError):
    """A recording of the evaluation manifest that was usable at the start and no longer is."""


@dataclass(frozen=True)
class BatchRecord:
    """What the trainer records about a batch from the queue."""

    positions: list[int]
    ids: list[str]
    duration_s: float
    """Audio in the batch, in seconds."""
    waited_s: float
    """How long the batch was waited for, in seconds."""


class PositionDataset(Dataset[int]):
    """A map-style dataset whose item i is i; the collator makes the batch of it."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:
        return position


class PositionSampler(Sampler[int]):
    """The positions from `start` to before `stop`, in order: exactly what a run still has to train."""

    def __init__(self, start: int, stop: int) -> None:
        self._positions = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


class BatchMaker:
    """Samples → the padded tensors that Whisper takes."""

    def __init__(self, window_frames: int, decoder_start_token_id: int, pad_token_id: int) -> None:
        """
        Args:
            window_frames: log-mel frames of the model's window.
            decoder_start_token_id: the model's own.
            pad_token_id: the model's own.
        """
        self._window_frames = window_frames
        self._decoder_start_token_id = decoder_start_token_id
        self._pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """
        Returns:
            `input_features` float32 `[batch, num_mel_bins, window_frames]`; `labels` int64 `[batch, tokens]`, padded
            with -100; `decoder_input_ids` int64 `[batch, tokens]`: the labels one later, behind one start token. They
            are given because the trainer computes the loss itself, and the model sees no labels then.
        """
        arrays = pad_batch(samples, self._window_frames, self._decoder_start_token_id)
        labels = torch.from_numpy(arrays["labels"])
        return {
            "input_features": torch.from_numpy(arrays["input_features"]),
            "labels": labels,
            "decoder_input_ids": shift_tokens_right(labels, self._pad_token_id, self._decoder_start_token_id),
        }


class Collator:
    """Positions → a batch.

    A DataLoader worker returns a failure in place of the batch, and `raise_failure` raises it in the trainer, where
    exceptions of workers would arrive as text in a traceback.
    """

    def __call__(self, positions: Sequence[int]) -> dict[str, Any]:
        """
        Args:
            positions: what the sampler chose.

        Returns:
            Tensors for the model, and what the trainer needs besides.
        """
        try:
            return self.collate(positions)
        except (UserError, StopRequested) as error:
            if get_worker_info() is None:
                raise
            return {FAILURE: (type(error), str(error))}

    def collate(self, positions: Sequence[int]) -> dict[str, Any]:
        """Makes the batch."""
        raise NotImplementedError


def raise_failure(batch: dict[str, Any]) -> None:
    """Raises the exception that was raised in a DataLoader worker while it made this batch."""
    if FAILURE in batch:
        error_type, message = batch[FAILURE]
        raise error_type.__new__(error_type, message)


class StreamCollator(Collator):
    """Positions → the batch of exactly those samples, taken from the queue. Blocks until they are there."""

    def __init__(
        self, reader: SampleReader, card: PlanCard, key: str, limits: SampleLimits, make_batch: BatchMaker
    ) -> None:
        """
        Args:
            reader: the trainer's end of the queue; it makes a connection of its own in each DataLoader worker.
            card: the plan, to check the samples against.
            key: Redis key of the queue, for messages.
            limits: what the model takes.
            make_batch: pads the samples.
        """
        self._reader = reader
        self._card = card
        self._key = key
        self._limits = limits
        self._make_batch = make_batch

    def collate(self, positions: Sequence[int]) -> dict[str, Any]:
        """Takes ascending positions without a gap; the batch carries its `BatchRecord`."""
        start, count = positions[0], len(positions)
        if list(positions) != list(range(start, start + count)):
            raise AssertionError(f"the sampler gave positions that do not follow each other: {list(positions)}")
        waited_s = self._reader.waited_s
        payloads = self._reader.take(start, count)
        samples = [self._decode(payload, position) for position, payload in zip(positions, payloads, strict=True)]
        record = BatchRecord(
            positions=list(positions),
            ids=[sample.id for sample in samples],
            duration_s=sum(sample.duration_s for sample in samples),
            waited_s=self._reader.waited_s - waited_s,
        )
        return {**self._make_batch(samples), RECORD: record}

    def _decode(self, payload: bytes, position: int) -> Sample:
        plan = self._card.fingerprint
        return decode_sample(payload, key=self._key, position=position, plan=plan, limits=self._limits)


class EvaluationCollator(Collator):
    """Positions → the batch of those recordings of the evaluation manifest, without augmentation and queue."""

    def __init__(self, recordings: Recordings, settings: SampleSettings, make_batch: BatchMaker) -> None:
        """
        Args:
            recordings: the usable recordings of the evaluation manifest.
            settings: how their samples are made.
            make_batch: pads the samples.
        """
        self._recordings, self._settings, self._make_batch = recordings, settings, make_batch

    def collate(self, positions: Sequence[int]) -> dict[str, Any]:
        """Reads the recordings and makes their log-mels and labels."""
        with reading_ahead((self._recordings[position].audio for position in positions), self._settings.data):
            return self._make_batch([self._load(position) for position in positions])

    def _load(self, position: int) -> Sample:
        recording = self._recordings[position]
        try:
            return make_sample(recording, position, self._settings)
        except RecordingError as error:
            raise EvaluationError(
                f"{without_secrets(recording.audio)} of data.eval_manifest can no longer be read ({error}): put it "
                "back, or take it out of the manifest, and start again; training goes on from the last checkpoint"
            ) from error
