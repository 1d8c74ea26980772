"""Hugging Face's `Seq2SeqTrainer`, told to train positions in order, to stop cleanly, and to save whole checkpoints."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from common.command_line import Interruption
from common.errors import UserError
from sample_queue.errors import FencedError, StopRequested
from sample_queue.reader import SampleReader
from training.batches import RECORD, BatchRecord, Collator, PositionSampler, StreamCollator, raise_failure
from training.checkpoints import (
    MARKER,
    CheckpointError,
    OutputRemovedError,
    Progress,
    mark_complete,
    rotate,
    saving,
    unmark,
)
from training.languages import own_prompts
from training.log import SamplesLog, SamplesLogError
from training.ranks import agree, sum_over_ranks
from training.schedule import Schedule
from training.stop_flag import StopFlag, leave_signals_to_the_trainer
from training.token_mean_loss import TokenMeanLoss

logger = logging.getLogger(__name__)

SAMPLES_LOG = "trained_samples.jsonl"


class StreamTrainer(Seq2SeqTrainer):
    """Trains the positions of a schedule in order, each exactly once relative to its newest complete checkpoint."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        samples_per_epoch: int,
        corpora: list[str],
        progress: Progress,
        reader: SampleReader,
        trained: Any,
        stop: StopFlag,
        stream_collator: StreamCollator,
        evaluation_collator: Collator | None,
        keep_checkpoints: int,
        early_stopping_patience: int,
        log_samples: bool,
        **trainer: Any,
    ) -> None:
        """
        Args:
            schedule: what to train.
            samples_per_epoch: positions in an epoch of the plan.
            corpora: names of the corpora of a mixture; empty for a corpus of its own.
            progress: what the run has done so far.
            reader: the queue.
            trained: its `value` is kept at the position before which everything has been trained.
            stop: set it, and training ends after the step that is running.
            stream_collator: makes training batches.
            evaluation_collator: makes evaluation batches; None without an evaluation.
            keep_checkpoints: complete checkpoints to keep.
            early_stopping_patience: evaluations without a better one after which to stop; 0: never.
            log_samples: whether to note every trained micro-batch in `trained_samples.jsonl`.
            trainer: what `Seq2SeqTrainer` takes.
        """
        callbacks: list[TrainerCallback] = [progress, _StepCallback(self)]
        if early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience))
        self.schedule = schedule
        self._samples_per_epoch = samples_per_epoch
        self._reader, self._trained, self._stop = reader, trained, stop
        self._collators: dict[bool, Collator] = {True: stream_collator}
        if evaluation_collator:
            self._collators[False] = evaluation_collator
        self._keep_checkpoints = keep_checkpoints
        self._early_stopping_patience = early_stopping_patience
        self._waited_since_log_s = 0.0
        self._session_began = time.monotonic()
        self._step_audio_s = 0.0
        self._corpora, self._step_corpora = corpora, [0.0] * len(corpora)
        super().__init__(
            callbacks=callbacks,
            compute_loss_func=TokenMeanLoss(trainer["args"].label_smoothing_factor),
            **trainer,
        )
        self._output_dir = Path(str(self.args.output_dir))
        self._samples_log = (
            SamplesLog(self._output_dir / SAMPLES_LOG, self.args.process_index, reader.trainer) if log_samples else None
        )

    @property
    def progress(self) -> Progress:
        """What the run has done; Hugging Face makes a new object of it when it resumes."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, Progress))

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
                if self.args.world_size > 1:  # the other ranks may be anywhere: a checkpoint needs them all
                    raise
                failure = error
            finally:
                self.release_workers()
            if ended and not self._stop.signal_number:
                self._stop.clear()
                return
            # Outside of `except`, so that the frames of the training loop, and with them its workers, are gone.
            if not (self._checkpoint_folder() / MARKER).is_file():
                self._write_checkpoint(self.model_wrapped, trial=None)
                logger.info("saved %s: start again to go on from there", self._checkpoint_folder())
                if not failure:
                    self._commit()
        raise failure or Interruption(self._stop.signal_number or signal.SIGTERM)

    def release_workers(self) -> None:
        """Lets DataLoader workers go that still wait for samples nobody wants."""
        self._stop.set()

    @property
    def model_step(self) -> int:
        """Optimizer steps behind the model as it is after training: the best one's, or the last."""
        has_best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        return (self.state.best_global_step if has_best else None) or self.state.global_step

    @property
    def training_s(self) -> float:
        """Time that the run has taken, all its sessions together, in seconds."""
        return self.progress.training_s + time.monotonic() - self._session_began

    def save_final_model(self) -> None:
        """Saves model, processor and the state of the run to the output folder.

        Raises:
            CheckpointError: it cannot be written.
        """
        with saving(self._output_dir):
            self.save_model()
            self.save_state()

    # What Hugging Face's loop asks for

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
        counts = Counter(name.partition("/")[0] for record in records for name in record.ids)
        self._step_audio_s, waited_s, *self._step_corpora = sum_over_ranks(
            [
                sum(record.duration_s for record in records),
                sum(record.waited_s for record in records),
                *(float(counts[name]) for name in self._corpora),
            ],
            device,
        )
        self._waited_since_log_s += waited_s / self.args.world_size
        self.progress.waited_s += waited_s / self.args.world_size
        return batches, self._get_num_items_in_batch(batches, device)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise StopRequested

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch, which is noted down."""
        record: BatchRecord = inputs.pop(RECORD)
        tokens = inputs["labels"].ne(-100).sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._samples_log:
            share = 1.0 if num_items_in_batch is None else float(num_items_in_batch / tokens) / self.args.world_size
            self._samples_log.note(record.positions, record.ids, float(loss) * share)
        return loss

    def step_done(self) -> None:
        """An optimizer step is done: note it, and let go of what it trained."""
        self._trained.value = self.position
        self.state.epoch = self.position / self._samples_per_epoch
        self.progress.trained_s += self._step_audio_s
        trained = self.progress.trained_by_corpus
        for name, count in zip(self._corpora, self._step_corpora, strict=True):
            trained[name] = trained.get(name, 0) + round(count)
        if self._samples_log:
            self._samples_log.write_step(self.state.global_step)
        self._check_output_dir()
        if self.is_world_process_zero():
            with suppress(StopRequested):  # the server is away: all ranks stop together before the next step
                self._reader.trim(self.position)

    def training_begins(self) -> None:
        """Undoes what Hugging Face restores from a checkpoint although the user may have changed it since."""
        self.state.compute_steps(self.args, self.state.max_steps)
        self._trained.value = self.position
        self.state.epoch = self.position / self._samples_per_epoch
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience = self._early_stopping_patience

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds how full the queue is and how long training waited for it since the last log."""
        if "loss" in logs:
            logs["queue_depth"] = 0
            if self.is_world_process_zero():
                with suppress(StopRequested):  # the server is away: all ranks stop together before the next step
                    logs["queue_depth"] = self._reader.status().depth
            logs["queue_wait_s"] = round(self._waited_since_log_s, 2)
            self._waited_since_log_s = 0.0
        super().log(logs, start_time)

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluates without the recordings that fill up the last batch of several ranks."""
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One batch of the evaluation, unless training shall stop: an evaluation may take hours."""
        failure: Exception | None = None
        try:
            raise_failure(inputs)
            if self.is_in_train:
                self._raise_if_stopped()
        except (StopRequested, UserError) as error:
            failure = error
        agree(failure, self.args.device)
        processor: Any = self.processing_class
        prompts = own_prompts(inputs["labels"], processor.tokenizer)
        if prompts is not None:
            kwargs |= {**self._gen_kwargs, "decoder_input_ids": prompts.to(self.args.device)}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False) -> Any:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if (
            skip_scheduler and self.state.global_step
        ):  # at the start of a resumed run: makes up for one that was cut short
            self._determine_best_metric(metrics, trial)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Also saves where Hugging Face would not: the best model, and the step at which early stopping hits."""
        is_best = super()._determine_best_metric(metrics, trial)
        if self.control.should_training_stop or (is_best and self.args.load_best_model_at_end):
            self.control.should_save = True
        return is_best

    # Checkpoints

    def _checkpoint_folder(self) -> Path:
        return self._output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _check_output_dir(self) -> None:
        """Hugging Face would make a removed folder again without a word: the record, and the best model, are gone."""
        if not self._output_dir.is_dir() or (self._samples_log and self._samples_log.is_removed):
            raise OutputRemovedError(self._output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_output_dir()
        try:
            self._write_checkpoint(model, trial)
        except CheckpointError:
            self._check_output_dir()  # removed in the meantime: then it can be saved anew
            raise
        self._commit()

    def _commit(self) -> None:
        if self.is_world_process_zero():
            with suppress(StopRequested):  # the server is away: the checkpoint is what counts
                self._reader.commit(self.position)

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves; when everything is on disk, marks the checkpoint complete, and only then drops old ones."""
        folder, progress = self._checkpoint_folder(), self.progress
        progress.position = self.position
        progress.training_s += time.monotonic() - self._session_began
        self._session_began = time.monotonic()
        leads = self.is_world_process_zero()
        with saving(folder):
            if self._samples_log:
                self._samples_log.sync()
            if leads:
                unmark(folder)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each rank writes its own random state
            if leads:
                mark_complete(folder, position=self.position, step=self.state.global_step, plan=progress.plan)
                best = self.state.best_model_checkpoint
                rotate(self._output_dir, self._keep_checkpoints, Path(best) if best else None)


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
