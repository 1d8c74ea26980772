"""The training half of the trainer: positions in order, a clean stop, and complete checkpoints."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, TrainerCallback

from common.command_line import Interruption
from common.errors import UserError
from config import ModelConfig
from sample_queue.errors import FencedError, StopRequested
from sample_queue.reader import SampleReader
from training.batches import RECORD, BatchRecord, Collator, PositionSampler, StreamCollator, raise_failure
from training.checkpointing_trainer import CheckpointingTrainer
from training.checkpoints import CheckpointError, Progress
from training.log import SamplesLogError
from training.ranks import agree, sum_over_ranks
from training.schedule import Schedule
from training.stop_flag import StopFlag, leave_signals_to_the_trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingStream:
    """Where training batches come from, and which of them are trained."""

    schedule: Schedule
    samples_per_epoch: int
    """Positions in an epoch of the plan."""
    reader: SampleReader
    """The queue."""
    collator: StreamCollator
    """Makes the batches."""
    trained: Any
    """Shared number: its `value` is kept at the position before which everything has been trained."""
    stop: StopFlag
    """When it is set, training ends after the step that is running."""


class StreamTrainer(CheckpointingTrainer):
    """Trains the positions of a schedule in order, each exactly once relative to its newest complete checkpoint."""

    def __init__(
        self,
        stream: TrainingStream,
        config: ModelConfig,
        progress: Progress,
        evaluation_collator: Collator | None,
        **trainer: Any,
    ) -> None:
        """
        Args:
            stream: what to train.
            config: how many checkpoints to keep, when to stop early, whether to record every micro-batch.
            progress: what the run has done so far, and by what its best model is found.
            evaluation_collator: makes evaluation batches; None without an evaluation.
            trainer: what `Seq2SeqTrainer` takes.
        """
        callbacks: list[TrainerCallback] = [_StepCallback(self)]
        if evaluation_collator and config.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
        self._stream = stream
        self._collators: dict[bool, Collator] = {True: stream.collator}
        if evaluation_collator:
            self._collators[False] = evaluation_collator
        self._waited_since_log_s = 0.0
        self._step_audio_s = 0.0
        super().__init__(config, progress, stream.reader, callbacks, stop=stream.stop, **trainer)

    @property
    def schedule(self) -> Schedule:
        """What is trained."""
        return self._stream.schedule

    @property
    def position(self) -> int:
        """All samples before this position have been trained."""
        return self.schedule.position(self.state.global_step)

    def train_stream(self, checkpoint: Path | None) -> None:
        """Trains to the end of the schedule, or until early stopping.

        Args:
            checkpoint: complete checkpoint to go on from, or None.

        Raises:
            Interruption: a signal came; a complete checkpoint of the last finished step has been saved.
            UserError: training cannot go on. A checkpoint of the last finished step has been saved, unless another
                trainer has taken over the stream, or the disk is full.
        """
        failure: UserError | None = None
        ended = False
        with self._stop.set_by_signals():
            try:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                ended = True
            except StopRequested:
                logger.info("stopping after step %d", self.state.global_step)
            except (FencedError, CheckpointError, SamplesLogError):
                raise
            except UserError as error:
                if self.args.world_size > 1:  # saving needs all ranks, and the others may be in another step
                    raise
                failure = error
            finally:
                self.release_workers()
            if ended and not self._stop.signal_number:
                self._stop.clear()
                return
            # Not inside `except`: there the error would keep the training loop's frames, and its workers, alive.
            if not self._is_saved():
                self._write_checkpoint(self.model_wrapped, trial=None)
                logger.info("saved %s: start again to go on from there", self._checkpoint_folder())
                if not failure:
                    self._commit()
        raise failure or Interruption(self._stop.signal_number or signal.SIGTERM)

    def release_workers(self) -> None:
        """Ends DataLoader workers that still wait for samples beyond the last step."""
        self._stop.set()

    # Overridden parts of Hugging Face's training loop

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return PositionSampler(self.schedule.start_position, self.schedule.stop_position)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Sampler] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        self.data_collator = self._collators[is_training]
        loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        base = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        base.worker_init_fn = leave_signals_to_the_trainer
        base.generator = torch.Generator()  # iterators would draw from the global one, and a resumed run would differ
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """The micro-batches of the next optimizer step. The one place where training waits, stops and fails."""
        batches: list[dict[str, Any]] = []
        failure: Exception | None = None
        try:
            for _ in range(num_batches):
                self._raise_if_stopped()
                batch = next(epoch_iterator, None)
                if batch is None:
                    break
                raise_failure(batch)
                batches.append(batch)
            self._raise_if_stopped()
        except (StopRequested, UserError) as error:
            failure = error
        except RuntimeError as error:  # of the DataLoader, when a signal ended its workers too
            if not self._stop.is_set():
                raise
            failure = StopRequested(str(error))
        agree(failure, device)
        records: list[BatchRecord] = [batch[RECORD] for batch in batches]
        self._step_audio_s, waited_s = sum_over_ranks(
            [sum(record.duration_s for record in records), sum(record.waited_s for record in records)], device
        )
        self._waited_since_log_s += waited_s / self.args.world_size
        self.progress.waited_s += waited_s / self.args.world_size
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward pass of one micro-batch, which is recorded."""
        record: BatchRecord = inputs.pop(RECORD)
        tokens = inputs["labels"].ne(-100).sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._samples_log:
            share = 1.0 if num_items_in_batch is None else float(num_items_in_batch / tokens) / self.args.world_size
            self._samples_log.note(record.positions, record.ids, float(loss) * share)
        return loss

    def step_done(self) -> None:
        """Called after each optimizer step: records it, and lets the queue drop what it trained."""
        self._stream.trained.value = self.position
        self.state.epoch = self.position / self._stream.samples_per_epoch
        self.progress.trained_s += self._step_audio_s
        if self._samples_log:
            self._samples_log.write_step(self.state.global_step)
        self._check_output_dir()
        if self.is_world_process_zero():
            with suppress(StopRequested):  # the server is away: all ranks stop together before the next step
                self._reader.trim(self.position)

    def training_begins(self) -> None:
        """Called when Hugging Face's loop begins: takes the position and the settings of this run."""
        self.apply_configuration()
        self._stream.trained.value = self.position
        self.state.epoch = self.position / self._stream.samples_per_epoch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds how many samples the queue holds and how long training waited for it since the last log."""
        if "loss" in logs:
            logs["queue_depth"] = 0
            if self.is_world_process_zero():
                with suppress(StopRequested):  # the server is away, and training ends at its next look at the flag
                    logs["queue_depth"] = self._reader.status().depth
            logs["queue_wait_s"] = round(self._waited_since_log_s, 2)
            self._waited_since_log_s = 0.0
        super().log(logs, start_time)


class _StepCallback(TrainerCallback):
    """Tells the trainer when Hugging Face's loop has begun, and has finished a step."""

    def __init__(self, trainer: StreamTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.training_begins()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.release_workers()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.step_done()
