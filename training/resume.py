"""What a resumed run takes from its checkpoint, and what the configuration decides anew.

Hugging Face restores everything, so that a changed learning rate, schedule or metric would be shown in the log and
have no effect. Here the weights, the optimizer's moments and the position come from the checkpoint; learning rate,
schedule, weight decay and the like come from the configuration.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerState, WhisperConfig
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import CONFIG_NAME

from training.checkpoints import CheckpointError, Progress

logger = logging.getLogger(__name__)

MOMENTS_IN_GROUPS = {"k", "weight_sum", "lr_max", "scheduled_lr", "train_mode", "d", "d_max", "d_numerator"}
"""What optimizers without a schedule keep beside their hyper-parameters. Source: schedulefree, prodigyopt."""
SHAPES = (
    "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "num_mel_bins",
    "max_source_positions", "max_target_positions", "vocab_size",
)  # fmt: skip
"""Fields of a Whisper's config.json that decide the shapes of its weights."""


class ChangedSettingError(CheckpointError):
    """A setting was changed that the checkpoint cannot follow."""


def check_model_shapes(checkpoint: Path, config: WhisperConfig) -> None:
    """Refuses a checkpoint whose weights are of another model.

    Raises:
        ChangedSettingError: it is; the message names a difference.
    """
    try:
        saved = json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} is damaged ({error!r}): remove that folder to go on from the one before"
        ) from error
    for name in SHAPES:
        was, now = saved.get(name), getattr(config, name)
        if was is not None and was != now:
            raise ChangedSettingError(
                f"{checkpoint} holds a model with {name} {was}, model.model_name has {now}: set model.model_name back, "
                "or choose another --model.output_dir"
            )


def restore_optimizer(
    optimizer: torch.optim.Optimizer, scheduler: Any, checkpoint: Path, step: int, arguments: Any, keeps_rate: bool
) -> None:
    """Takes the optimizer's moments from a checkpoint, and puts the configured schedule at its step.

    Args:
        optimizer: new, with the configured hyper-parameters.
        scheduler: new, on `optimizer`.
        checkpoint: complete checkpoint. Without its optimizer.pt the optimizer starts anew.
        step: optimizer steps behind the checkpoint.
        arguments: the training arguments.
        keeps_rate: whether a rate that the scheduler has lowered, by the metric, still counts.

    Raises:
        ChangedSettingError: the moments belong to another optimizer, or to other parameters.
    """
    path = checkpoint / OPTIMIZER_NAME
    if path.is_file():
        device = arguments.device if arguments.world_size > 1 and arguments.device.type != "cpu" else "cpu"
        saved = torch.load(path, map_location=device, weights_only=True)
        _check_optimizer(optimizer, saved, path, arguments)
        names = set(optimizer.defaults) - MOMENTS_IN_GROUPS
        configured = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        for group, values in zip(optimizer.param_groups, configured, strict=True):
            group.update(values)
    else:
        logger.warning("%s is missing: the optimizer starts anew, from the weights of that checkpoint", path)
    _restore_schedule(optimizer, scheduler, checkpoint / SCHEDULER_NAME, step, keeps_rate)


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path, arguments: Any) -> None:
    remedy = f"set it back, or remove {path} to start the optimizer anew from the weights of that checkpoint"
    groups, saved_groups = optimizer.param_groups, saved["param_groups"]
    names, saved_names = (
        {name for group in each for name in group} - {"initial_lr"} for each in (groups, saved_groups)
    )
    if names != saved_names:
        raise ChangedSettingError(
            f"the optimizer (model.trainer_arguments optim) is {arguments.optim.value}, but {path} is the state of "
            f"another one: {remedy}"
        )
    count, saved_count = (sum(len(group["params"]) for group in each) for each in (groups, saved_groups))
    if count != saved_count:
        raise ChangedSettingError(
            f"model.freeze_feature_encoder was changed: {path} is the state of an optimizer of {saved_count} tensors, "
            f"this run trains {count}: {remedy}"
        )


def _restore_schedule(
    optimizer: torch.optim.Optimizer, scheduler: Any, path: Path, step: int, keeps_rate: bool
) -> None:
    """Puts a scheduler where it stood.

    Most are functions of the step. One that follows the metric is only restored when it was the same before.
    """
    saved = torch.load(path, weights_only=True) if path.is_file() else {}
    if not isinstance(scheduler, LambdaLR):
        if keeps_rate and saved.keys() == scheduler.state_dict().keys():
            scheduler.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, saved.get("_last_lr", ()), strict=False):
                group["lr"] = rate
        return
    scheduler.last_epoch = int(saved.get("last_epoch", step))  # fewer than the steps if float16 skipped some
    scheduler._step_count = scheduler.last_epoch + 1
    rates = [
        rate * factor(scheduler.last_epoch)
        for rate, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def best_still_counts(state: TrainerState, progress: Progress, judged_by: str, metric: str) -> bool:
    """Whether the best model of earlier sessions was found by what this one goes by.

    Args:
        state: as the checkpoint holds it.
        progress: likewise.
        judged_by: metric and evaluation manifest of this session, as `Progress.judged_by`.
        metric: the metric alone, for checkpoints that do not hold `judged_by`.
    """
    if state.best_metric is None:
        return True
    if progress.judged_by:
        return progress.judged_by == judged_by
    at_best = [entry for entry in state.log_history if entry.get("step") == state.best_global_step]
    return any(entry.get(f"eval_{metric}") == state.best_metric for entry in at_best)


def forget_best(state: TrainerState, callbacks: list[Any], judged_by: str) -> None:
    """Drops the best model so far and the patience that was used up, with a line in the log."""
    logger.warning(
        "the best model so far (step %s) no longer counts, nor do the evaluations since: this run goes by %s",
        state.best_global_step, judged_by,
    )  # fmt: skip
    state.best_metric = state.best_model_checkpoint = state.best_global_step = None
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = 0
