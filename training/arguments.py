"""From the configuration to Hugging Face's `Seq2SeqTrainingArguments`."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from common.errors import ConfigurationError, one_line
from config import Config

logger = logging.getLogger(__name__)

DECIDED_HERE = {
    "output_dir": "set model.output_dir",
    "seed": "set data.seed",
    "data_seed": "set data.seed",
    "num_train_epochs": "set data.epochs",
    "do_train": "the script trains",
    "resume_from_checkpoint": "the newest complete checkpoint in model.output_dir is taken",
    "save_strategy": "set model.save_steps",
    "eval_strategy": "set model.eval_steps",
    "logging_strategy": "set model.logging_steps",
    "disable_tqdm": "progress is logged in lines",
    "restore_callback_states_from_checkpoint": "a resumed run needs them",
    "gradient_checkpointing_kwargs": "use activation_checkpointing_kwargs",
    "activation_checkpointing": "set model.gradient_checkpointing",
    **dict.fromkeys(
        (
            "ignore_data_skip", "remove_unused_columns", "train_sampling_strategy", "accelerator_config",
            "dataloader_drop_last", "dataloader_in_order", "average_tokens_across_devices", "auto_find_batch_size",
            "save_only_model", "label_names", "enable_jit_checkpoint", "batch_eval_metrics", "include_for_metrics",
            "length_column_name",
        ),
        "another value would lose or repeat samples",
    ),
}  # fmt: skip
"""Arguments that `model.trainer_arguments` may not hold, and what to do instead."""


def make_training_arguments(config: Config) -> Seq2SeqTrainingArguments:
    """Translates the configuration. Under `torchrun` this is where the ranks meet.

    Raises:
        ConfigurationError: an unknown name in `model.trainer_arguments`, or a value that Hugging Face refuses.
    """
    model = config.model
    evaluates = bool(config.data.eval_manifest)
    keeps_best = evaluates and model.load_best_model_at_end
    chosen: dict[str, Any] = {
        "output_dir": model.output_dir,
        "seed": config.data.seed,
        "max_steps": model.max_steps,
        "per_device_train_batch_size": model.per_device_train_batch_size,
        "per_device_eval_batch_size": model.per_device_eval_batch_size,
        "gradient_accumulation_steps": model.gradient_accumulation_steps,
        "learning_rate": model.learning_rate,
        "lr_scheduler_type": model.lr_scheduler_type,
        "warmup_steps": model.warmup_steps,
        "weight_decay": model.weight_decay,
        "activation_checkpointing": model.gradient_checkpointing,
        "bf16": model.bf16,
        "tf32": True if model.tf32 and _has_tf32() else None,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": model.eval_steps,
        "save_strategy": "steps",
        "save_steps": model.save_steps,
        "save_total_limit": None,  # checkpoints.rotate does it, which counts complete ones only
        "logging_strategy": "steps",
        "logging_steps": model.logging_steps,
        "predict_with_generate": model.predict_with_generate,
        "generation_max_length": model.generation_max_length,
        "load_best_model_at_end": keeps_best,
        "metric_for_best_model": model.metric_for_best_model if evaluates else None,
        "greater_is_better": model.greater_is_better if evaluates else None,
        "dataloader_num_workers": model.dataloader_num_workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ignore_data_skip": True,  # the sampler begins at the position to go on from
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        "restore_callback_states_from_checkpoint": True,
        "label_names": ["labels"],
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),  # else ranks on CPUs would not know of each other
        **_user_arguments(config),
    }
    if not evaluates:
        logger.info("data.eval_manifest is empty: no evaluation, no best model, no early stopping")
        chosen["eval_on_start"] = False
    try:
        arguments = Seq2SeqTrainingArguments(**chosen)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigurationError(f"Hugging Face refuses the training arguments: {one_line(error)}") from error
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are here, one is used: for all, start with torchrun --nproc-per-node=gpu", arguments.n_gpu
        )
        arguments._n_gpu = 1  # DataParallel would weigh the loss per GPU, not per token
    return arguments


def _user_arguments(config: Config) -> dict[str, Any]:
    """`model.trainer_arguments`, checked by name."""
    known = [field.name for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init]
    for name in config.model.trainer_arguments:
        if name in DECIDED_HERE:
            raise ConfigurationError(f"model.trainer_arguments holds {name!r}: leave it out ({DECIDED_HERE[name]})")
        if name not in known:
            nearest = difflib.get_close_matches(
                name, [known_name for known_name in known if known_name not in DECIDED_HERE], 1
            )
            hint = f"did you mean {nearest[0]!r}?" if nearest else "see Hugging Face's Seq2SeqTrainingArguments"
            raise ConfigurationError(
                f"model.trainer_arguments holds {name!r}, which Hugging Face does not know: {hint}"
            )
    return dict(config.model.trainer_arguments)


def _has_tf32() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
