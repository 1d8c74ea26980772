"""A training run from start to end: checkpoint, trainer, training, evaluation, final model, report."""

from __future__ import annotations

import logging
from dataclasses import replace
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerState,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.logging import disable_progress_bar

from common.errors import UserError
from config import Config
from corpus.formats import find_manifest
from corpus.recordings import Recordings
from corpus.scan import load_recordings
from data_processor import SampleSettings
from features.feature_spec import FeatureSpec, load_feature_spec
from features.labels import TranscriptEncoder, load_transcript_encoder
from features.sample import SampleLimits
from sample_queue.errors import FinishedRunError
from sample_queue.memory import check_capacity
from sample_queue.protocol import PlanCard
from sample_queue.reader import SampleReader, trainer_token
from training.arguments import make_training_arguments
from training.batches import BatchMaker, EvaluationCollator, PositionDataset, StreamCollator
from training.checkpoints import TRAINER_STATE, Checkpoint, Progress, newest_complete, remove_incomplete, saving
from training.hub_upload import upload_model
from training.log import LogLine
from training.metrics import TranscriptionMetrics
from training.model import check_model_fits
from training.model_card import write_model_card
from training.output_folder import OutputFolder
from training.report import make_report
from training.resume import best_still_counts, check_model_shapes
from training.schedule import Schedule, make_schedule
from training.stop_flag import StopFlag
from training.stream_trainer import StreamTrainer, TrainingStream

logger = logging.getLogger(__name__)

SETTINGS_FILE = "trainer_config.json"
REJECTED_FILE = "rejected_eval.jsonl"


class TooFewSamplesError(UserError):
    """The plan does not fill one optimizer step."""


class TrainingRun:
    """The state of one run of the training script."""

    def __init__(self, config: Config) -> None:
        """Connects to the other ranks, if there are any, and prepares the output folder.

        Raises:
            UserError: an argument that cannot work, or an output folder that cannot be written or is another trainer's.
        """
        if config.data.eval_manifest:
            # A wrong path is refused before the model and the plan.
            find_manifest(config.data.eval_manifest, config.data.format)
        disable_progress_bar()  # those of loading and writing weights
        self._config = config
        self._output_dir = Path(config.model.output_dir).expanduser()
        self._arguments = make_training_arguments(config)
        self._leads = self._arguments.process_index == 0
        if self._leads:
            self._claim = OutputFolder(self._output_dir)
            config.save(self._output_dir / SETTINGS_FILE)
        self._stop = StopFlag()
        self._trained = RawValue("q", 0)
        token = broadcast_object_list([trainer_token()])[0]
        self._reader = SampleReader(config.redis, token, self._trained, self._stop)
        self._checkpoint: Checkpoint | None = None

    def wait_for_plan(self) -> PlanCard:
        """Waits until a producer has made the plan.

        Raises:
            UserError: no server, no producer for `redis.producer_timeout_s`, or a run that is finished.
        """
        try:
            return self._reader.wait_for_plan()
        except FinishedRunError as error:
            if (self._output_dir / SAFE_WEIGHTS_NAME).is_file():
                raise FinishedRunError(f"{error}. The model that was trained lies in {self._output_dir}") from error
            raise

    def make_trainer(
        self, card: PlanCard, model: WhisperForConditionalGeneration, processor: WhisperProcessor
    ) -> StreamTrainer:
        """Checks that plan, model, memory and checkpoints fit each other, and makes the trainer from them.

        Raises:
            UserError: they do not; one line says what to change.
        """
        config, arguments = self._config, self._arguments
        spec, encoder = load_feature_spec(config.model.model_name), load_transcript_encoder(config.model)
        check_model_fits(card, model, spec, encoder)
        arguments.generation_max_length = min(config.model.generation_max_length, model.config.max_target_positions)
        with arguments.main_process_first(local=False, desc="looking for a checkpoint"):
            self._checkpoint = self._find_checkpoint(card)
        if self._checkpoint:
            check_model_shapes(self._checkpoint.path, model.config)
        recordings = self._load_evaluation(spec, encoder)
        make_batch = BatchMaker(
            card.window_frames, model.config.decoder_start_token_id, int(model.config.pad_token_id or 0)
        )
        limits = SampleLimits(card.num_mel_bins, card.window_frames, encoder.max_tokens, model.config.vocab_size)
        stream_collator = StreamCollator(self._reader, card, f"{config.redis.namespace}:samples", limits, make_batch)
        evaluation_collator = recordings and EvaluationCollator(
            recordings, SampleSettings(spec, encoder, config.data, refuse_silence=False), make_batch
        )
        trainer = StreamTrainer(
            self._make_stream(card, stream_collator),
            config.model,
            Progress(plan=card.fingerprint, judged_by=self._judged_by),
            evaluation_collator or None,
            model=model,
            args=arguments,
            train_dataset=PositionDataset(card.planned),
            eval_dataset=PositionDataset(len(recordings)) if recordings else None,
            processing_class=processor,
            compute_metrics=TranscriptionMetrics(processor.tokenizer) if arguments.predict_with_generate else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LogLine(lambda: trainer.state.global_step if trainer.is_in_train else trainer.model_step))
        return trainer

    def attach(self, trainer: StreamTrainer) -> None:
        """Tells the queue to serve this run, from the checkpoint's position on.

        Raises:
            UserError: the queue holds another plan, or a finished run.
        """
        self._trained.value = trainer.schedule.start_position
        if self._leads:
            self._reader.attach(trainer.schedule.start_position)
            remove_incomplete(self._output_dir)  # not before: another trainer, now fenced off, may have been saving
        trainer.accelerator.wait_for_everyone()

    def train(self, trainer: StreamTrainer) -> None:
        """Trains until the plan or `model.max_steps` is done, or early stopping hits.

        Raises:
            Interruption: Ctrl-C or SIGTERM; a complete checkpoint has been saved.
            UserError: training cannot go on.
        """
        trainer.train_stream(self._checkpoint.path if self._checkpoint else None)

    def save(self, trainer: StreamTrainer) -> None:
        """Saves the model with all that is needed to load it.

        Raises:
            UserError: the output folder cannot be written.
        """
        trainer.save_final_model()

    def evaluate(self, trainer: StreamTrainer) -> dict[str, float]:
        """Evaluates the saved model, unless that was the last evaluation anyway.

        Returns:
            `eval_loss`, `eval_wer` and the like; empty without an evaluation manifest.
        """
        if trainer.eval_dataset is None:
            return {}
        step = trainer.model_step
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        if evaluations and evaluations[-1]["step"] == step:
            return evaluations[-1]
        logger.info("evaluating the model of step %d", step)
        metrics = trainer.evaluate()
        trainer.save_final_state()
        return metrics

    def finish(self, trainer: StreamTrainer) -> None:
        """Writes the model's card, says in the queue that the run is finished, and pushes to the Hub if that is wanted.

        Raises:
            UserError: the output folder cannot be written, or the Hub not be reached.
        """
        if self._leads:
            with saving(self._output_dir):
                write_model_card(self._output_dir, self._config, trainer)
            self._reader.finish()
            if self._arguments.push_to_hub:
                logger.info("pushed: %s", upload_model(self._output_dir, self._arguments))

    def report(self, trainer: StreamTrainer, metrics: dict[str, float]) -> str:
        """The closing report; empty on all ranks but the first."""
        return make_report(self._config, trainer, metrics) if self._leads else ""

    def _find_checkpoint(self, card: PlanCard) -> Checkpoint | None:
        checkpoint = newest_complete(self._output_dir, card.fingerprint)
        if self._leads and checkpoint:
            logger.info(
                "going on from %s: step %d, position %d of %d",
                checkpoint.path, checkpoint.step, checkpoint.position, card.planned,
            )  # fmt: skip
        return checkpoint

    @property
    def _judged_by(self) -> str:
        """By what the best model is found; empty without an evaluation."""
        manifest = self._config.to_dict()["data"]["eval_manifest"]  # without secrets
        return f"{self._config.model.metric_for_best_model} on {manifest}" if manifest else ""

    def _make_stream(self, card: PlanCard, collator: StreamCollator) -> TrainingStream:
        schedule = self._make_schedule(card)
        return TrainingStream(schedule, card.samples_per_epoch, self._reader, collator, self._trained, self._stop)

    def _make_schedule(self, card: PlanCard) -> Schedule:
        arguments, checkpoint = self._arguments, self._checkpoint
        micro_batches = arguments.train_batch_size * arguments.world_size
        global_batch = micro_batches * arguments.gradient_accumulation_steps
        schedule = make_schedule(
            card.planned,
            start_step=checkpoint.step if checkpoint else 0,
            start_position=checkpoint.position if checkpoint else 0,
            global_batch=global_batch,
            ranks=arguments.world_size,
            max_steps=self._config.model.max_steps,
        )
        if checkpoint is None and card.planned < global_batch:
            raise TooFewSamplesError(
                f"the plan has {card.planned} samples, fewer than the {global_batch} of one optimizer step: lower "
                "model.per_device_train_batch_size or model.gradient_accumulation_steps, or raise data.epochs"
            )
        arguments.max_steps = schedule.steps
        if checkpoint:
            schedule = self._resume(checkpoint, schedule)
        if schedule.is_done:
            logger.info("nothing is left to train: %s is at the end of the run", checkpoint and checkpoint.path)
            return schedule
        self._warn_of_long_warmup(schedule.steps)
        prefetched = arguments.dataloader_num_workers * (arguments.dataloader_prefetch_factor or 2)
        check_capacity(
            self._reader.status().limit_bytes, card.max_sample_bytes, global_batch + micro_batches * (1 + prefetched)
        )
        return schedule

    def _warn_of_long_warmup(self, steps: int) -> None:
        warmup_steps = self._arguments.get_warmup_steps(steps)
        if warmup_steps >= steps:
            logger.warning(
                "model.warmup_steps (%d) is no less than the %d steps of the whole run: the learning rate never "
                "reaches its peak; set --model.warmup_steps 0.1 for a tenth of the run",
                warmup_steps, steps,
            )  # fmt: skip

    def _resume(self, checkpoint: Checkpoint, schedule: Schedule) -> Schedule:
        """Finds out whether the checkpoint ends the run, and whether its evaluation was cut short."""
        arguments = self._arguments
        state = TrainerState.load_from_json(str(checkpoint.path / TRAINER_STATE))
        ends_here = schedule.is_done or checkpoint.step % self._config.model.eval_steps == 0
        evaluated = any(entry["step"] == checkpoint.step and "eval_loss" in entry for entry in state.log_history)
        arguments.eval_on_start = arguments.eval_strategy == "steps" and ends_here and not evaluated
        stopping = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
        patience, metric = self._config.model.early_stopping_patience, self._config.model.metric_for_best_model
        used_up = stopping["attributes"]["early_stopping_patience_counter"] if stopping else 0
        if used_up >= patience > 0 and best_still_counts(state, checkpoint.progress, self._judged_by, metric):
            arguments.max_steps = checkpoint.step
            return replace(schedule, stop_position=checkpoint.position, steps=checkpoint.step)
        return schedule

    def _load_evaluation(self, spec: FeatureSpec, encoder: TranscriptEncoder) -> Recordings | None:
        data, report = self._config.data, self._output_dir / REJECTED_FILE
        if not data.eval_manifest:
            return None
        with self._arguments.main_process_first(local=False, desc="scanning the evaluation manifest"):
            # In threads: an evaluation manifest is small, and each process would first import all of this.
            return load_recordings(data.eval_manifest, data, spec, encoder, report=report, processes=0)
