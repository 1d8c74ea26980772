"""The evaluation half of the trainer: stops when asked, and reports a loss that does not depend on the batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer
from transformers.trainer_utils import EvalLoopOutput

from common.errors import UserError
from sample_queue.errors import StopRequested
from training.batches import raise_failure
from training.ranks import agree
from training.stop_flag import StopFlag
from training.token_mean_loss import TokenMeanLoss


class EvaluatingTrainer(Seq2SeqTrainer):
    """A `Seq2SeqTrainer` whose evaluation loss is the mean over all label tokens of the evaluation set.

    Hugging Face averages the means of the batches, so that its loss changes with the batch size.
    """

    def __init__(self, *, stop: StopFlag, **trainer: Any) -> None:
        """
        Args:
            stop: ends an evaluation that is part of training.
            trainer: what `Seq2SeqTrainer` takes, but for the loss.
        """
        self._stop = stop
        self._token_loss = TokenMeanLoss(trainer["args"].label_smoothing_factor)
        self._evaluated_loss, self._evaluated_tokens = 0.0, 0
        super().__init__(compute_loss_func=self._token_loss, **trainer)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluates each recording once: those that fill up the last batch of several ranks do not count."""
        self.gather_function = self.accelerator.gather_for_metrics
        self._evaluated_loss, self._evaluated_tokens = 0.0, 0
        output = super().evaluation_loop(*args, **kwargs)
        if output.metrics is not None and self._evaluated_tokens:
            output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = (
                self._evaluated_loss / self._evaluated_tokens
            )
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **generate: Any,
    ) -> tuple[None, torch.Tensor | None, torch.Tensor | None]:
        """Evaluates one batch, unless training shall stop: an evaluation may take hours.

        Returns:
            No loss, because `evaluation_loop` computes it; what the model writes; the labels.
        """
        self._check_batch(inputs)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad():
            losses, tokens = self._token_loss.per_recording(model(**inputs), labels)
        losses, tokens = self.accelerator.gather_for_metrics((losses, tokens))
        self._evaluated_loss += float(losses.double().sum())
        self._evaluated_tokens += int(tokens.sum())
        if prediction_loss_only:
            return None, None, None
        features = {"input_features": inputs["input_features"]}
        _, written, _ = super().prediction_step(model, features, prediction_loss_only, ignore_keys, **generate)
        return None, written, labels

    def _check_batch(self, batch: dict[str, Any]) -> None:
        """Ends the evaluation on all ranks when one of them has failed, or shall stop."""
        failure: Exception | None = None
        try:
            raise_failure(batch)
            if self.is_in_train:
                self._raise_if_stopped()
        except (StopRequested, UserError) as error:
            failure = error
        agree(failure, self.args.device)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise StopRequested

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False) -> Any:
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        repeats_one_cut_short = skip_scheduler and self.state.global_step > 0  # at the start of a resumed run
        if repeats_one_cut_short:
            self._determine_best_metric(metrics, trial)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Also saves where Hugging Face would not: the best model, and the step at which early stopping hits."""
        is_best = super()._determine_best_metric(metrics, trial)
        if self.control.should_training_stop or (is_best and self.args.load_best_model_at_end):
            self.control.should_save = True
        return is_best
