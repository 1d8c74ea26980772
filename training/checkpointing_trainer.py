"""The checkpoint half of the trainer: what it saves, and what it restores."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import EarlyStoppingCallback, TrainerCallback, WhisperProcessor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from config import ModelConfig
from sample_queue.errors import StopRequested
from sample_queue.reader import SampleReader
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
from training.evaluating_trainer import EvaluatingTrainer
from training.log import SamplesLog
from training.resume import best_still_counts, forget_best, restore_optimizer
from training.saved_folder import complete_saved_folder

SAMPLES_LOG = "trained_samples.jsonl"


class CheckpointingTrainer(EvaluatingTrainer):
    """Saves complete checkpoints, tells the queue of them, and resumes with the settings of the configuration."""

    def __init__(
        self,
        config: ModelConfig,
        progress: Progress,
        reader: SampleReader,
        callbacks: list[TrainerCallback],
        **trainer: Any,
    ) -> None:
        """
        Args:
            config: how many checkpoints to keep, when to stop early, whether to record every micro-batch.
            progress: what the run has done so far, and by what its best model is found.
            reader: the queue.
            callbacks: further callbacks.
            trainer: what `EvaluatingTrainer` takes.
        """
        self._config, self._reader = config, reader
        self._judged_by = progress.judged_by
        self._session_began = time.monotonic()
        super().__init__(callbacks=[progress, *callbacks], **trainer)
        self._output_dir = Path(str(self.args.output_dir))
        self._samples_log: SamplesLog | None = None
        if config.log_samples:
            self._samples_log = SamplesLog(self._output_dir / SAMPLES_LOG, self.args.process_index, reader.trainer)

    @property
    def position(self) -> int:
        """All samples before this position have been trained."""
        raise NotImplementedError

    @property
    def progress(self) -> Progress:
        """What the run has done. Hugging Face replaces the object when it resumes."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, Progress))

    @property
    def model_step(self) -> int:
        """Optimizer steps that led to the model as it is after training: the best one's, or all."""
        has_best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        return (self.state.best_global_step if has_best else None) or self.state.global_step

    @property
    def training_s(self) -> float:
        """Duration of the run, all its sessions together, in seconds."""
        return self.progress.training_s + time.monotonic() - self._session_began

    def save_final_model(self) -> None:
        """Saves model, processor and the state of the run to the output folder.

        Raises:
            CheckpointError: it cannot be written.
        """
        with saving(self._output_dir):
            self.save_model(_internal_call=True)  # or Hugging Face would push it now, without its card
        self.save_final_state()

    def save_final_state(self) -> None:
        """Saves the state of the run, its evaluations included, to the output folder.

        Raises:
            CheckpointError: it cannot be written.
        """
        with saving(self._output_dir):
            self.save_state()

    def apply_configuration(self) -> None:
        """Undoes what Hugging Face restores from a checkpoint although the configuration may have changed since."""
        self.state.compute_steps(self.args, self.state.max_steps)
        callbacks = self.callback_handler.callbacks
        for callback in callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience = self._config.early_stopping_patience
        if self._judged_by:
            metric = self._config.metric_for_best_model
            if not best_still_counts(self.state, self.progress, self._judged_by, metric):
                forget_best(self.state, callbacks, self._judged_by)
                if isinstance(self.lr_scheduler, ReduceLROnPlateau):
                    self.lr_scheduler._reset()
            self.progress.judged_by = self._judged_by
        self.progress.learning_rate = self.args.learning_rate

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Unlike Hugging Face's, leaves the learning rate, schedule and weight decay to the configuration."""
        if checkpoint is not None and self.optimizer is not None:
            keeps_rate = self.progress.learning_rate in (0.0, self.args.learning_rate)
            step = self.state.global_step
            restore_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint), step, self.args, keeps_rate)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Hugging Face would load the scaler of a float16 run into a run that has none."""
        if self.accelerator.scaler is not None:
            super()._load_scaler(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.processing_class, WhisperProcessor):
            complete_saved_folder(Path(output_dir or self._output_dir), self.processing_class)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: Hugging Face would put unfinished weights into the output folder. `hub_upload` pushes at the end."""

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False) -> Any:
        """Saves the model before the evaluation that ends the training, which may fail or be stopped."""
        if self.control.should_training_stop:
            self.save_final_model()
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _is_saved(self) -> bool:
        """Whether there is a complete checkpoint of the last finished step."""
        return (self._checkpoint_folder() / MARKER).is_file()

    def _checkpoint_folder(self) -> Path:
        return self._output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _check_output_dir(self) -> None:
        """Refuses to go on without the folder, which Hugging Face would make anew without the record in it."""
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
            with suppress(StopRequested):  # the server is away; the checkpoint is complete without it
                self._reader.commit(self.position)

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves, marks the checkpoint complete when everything is on the disk, and only then removes old ones."""
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
                rotate(self._output_dir, self._config.save_total_limit, Path(best) if best else None)
