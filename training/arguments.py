"""From the configuration to Hugging Face's `Seq2SeqTrainingArguments`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from common.errors import ConfigurationError, one_line
from config import Config
from training.argument_checks import check_arguments, check_user_arguments

logger = logging.getLogger(__name__)


def make_training_arguments(config: Config) -> Seq2SeqTrainingArguments:
    """Translates the configuration. Under `torchrun` this is where the ranks meet.

    Raises:
        ConfigurationError: an argument that cannot work.
    """
    model = config.model
    check_user_arguments(model.trainer_arguments)
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
        **model.trainer_arguments,
    }
    if not evaluates:
        logger.info("data.eval_manifest is empty: no evaluation, no best model, no early stopping")
        chosen["eval_on_start"] = False
    try:
        arguments = Seq2SeqTrainingArguments(**chosen)
        check_arguments(arguments)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ConfigurationError(f"Hugging Face refuses the training arguments: {one_line(error)}") from error
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are here, one is used: for all, start with torchrun --nproc-per-node=gpu", arguments.n_gpu
        )
        arguments._n_gpu = 1  # DataParallel would weigh the loss per GPU, not per token
    return arguments


def _has_tf32() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
