"""Refuses Hugging Face arguments that cannot work before a model is loaded or the plan is waited for.

Hugging Face finds most of these out while it builds its trainer, at the first step, or after the last one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers import Seq2SeqTrainingArguments, Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils.import_utils import is_liger_kernel_available

from common.errors import ConfigurationError, one_line

ONE_ORDER = "another value would lose or repeat samples"
WHOLE_EVALUATION = "the metrics need the whole evaluation"
HALF_PRECISION = "the model would be saved in half precision; set model.bf16 to evaluate in bfloat16"
FIXED_ARGUMENTS = {
    "output_dir": "set model.output_dir",
    "seed": "set data.seed",
    "data_seed": "set data.seed",
    "num_train_epochs": "set data.epochs",
    "do_train": "the script trains",
    "do_eval": "set data.eval_manifest",
    "do_predict": "set data.eval_manifest",
    "resume_from_checkpoint": "the newest complete checkpoint in model.output_dir is taken",
    "save_strategy": "set model.save_steps",
    "eval_strategy": "set model.eval_steps",
    "logging_strategy": "set model.logging_steps",
    "disable_tqdm": "progress is logged in lines",
    "restore_callback_states_from_checkpoint": "a resumed run needs them",
    "gradient_checkpointing_kwargs": "use activation_checkpointing_kwargs",
    "activation_checkpointing": "set model.gradient_checkpointing",
    "generation_config": "set model.language, model.task and model.generation_max_length; anything else is read from "
    "the generation_config.json of model.model_name",
    "prediction_loss_only": "set model.predict_with_generate False and model.metric_for_best_model loss",
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), "each GPU holds the whole model"),
    "bf16_full_eval": HALF_PRECISION,
    "fp16_full_eval": HALF_PRECISION,
    **dict.fromkeys(("eval_do_concat_batches", "batch_eval_metrics", "include_for_metrics"), WHOLE_EVALUATION),
    **dict.fromkeys(
        (
            "ignore_data_skip", "remove_unused_columns", "train_sampling_strategy", "accelerator_config",
            "dataloader_drop_last", "dataloader_in_order", "average_tokens_across_devices", "auto_find_batch_size",
            "save_only_model", "label_names", "enable_jit_checkpoint", "length_column_name",
        ),
        ONE_ORDER,
    ),
}  # fmt: skip
"""Arguments that `model.trainer_arguments` may not hold, and what to do instead."""

FORMER_ARGUMENTS = {
    "evaluation_strategy": "set model.eval_steps",
    "logging_dir": "TensorBoard's files go to the folder runs in model.output_dir; the environment variable "
    "TENSORBOARD_LOGGING_DIR names another",
    "save_safetensors": "checkpoints are always safetensors",
    "group_by_length": "the order of the samples is the plan's; batches are padded to their own longest labels",
    "tokenizer": "the tokenizer of model.model_name is used",
    "processing_class": "the processor of model.model_name is used",
    "overwrite_output_dir": "choose another model.output_dir to start anew",
    "warmup_ratio": "set model.warmup_steps; below 1 it is a share of all steps",
    "per_gpu_train_batch_size": "set model.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "set model.per_device_eval_batch_size",
    "no_cuda": "set use_cpu",
    "use_mps_device": "it is used where it is found",
    "fp16_backend": "leave it out",
    "half_precision_backend": "leave it out",
    "push_to_hub_model_id": "set hub_model_id",
    "push_to_hub_token": "log in with `hf auth login`, or set the environment variable HF_TOKEN",
    "include_tokens_per_second": "leave it out",
    "torchdynamo": "set torch_compile_backend",
    "dispatch_batches": "leave it out",
    "split_batches": "leave it out",
}
"""Names that Hugging Face knew once, or that its trainer takes elsewhere, and what replaces them here."""


def check_user_arguments(given: dict[str, Any]) -> None:
    """Checks names and types of `model.trainer_arguments`.

    Raises:
        ConfigurationError: an unknown, former or fixed name, or a value of the wrong type.
    """
    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    known = [field.name for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init]
    for name, value in given.items():
        instead = FIXED_ARGUMENTS.get(name) or (FORMER_ARGUMENTS.get(name) if name not in known else None)
        if instead:
            raise ConfigurationError(f"model.trainer_arguments holds {name!r}: leave it out ({instead})")
        if name not in known:
            nearest = difflib.get_close_matches(name, [each for each in known if each not in FIXED_ARGUMENTS], 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "see Hugging Face's Seq2SeqTrainingArguments"
            raise ConfigurationError(
                f"model.trainer_arguments holds {name!r}, which Hugging Face does not know: {hint}"
            )
        _check_type(name, value, hints[name])


def _check_type(name: str, value: Any, hint: Any) -> None:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = {typing.get_origin(member) or member for member in (typing.get_args(hint) if union else [hint])}
    if isinstance(value, str) and dict in allowed and value.lstrip().startswith("{"):
        try:
            json.loads(value)
        except ValueError as error:
            raise ConfigurationError(
                f"model.trainer_arguments {name} is {value!r}: expected JSON such as '{{\"min_lr\": 1e-6}}' "
                f"({one_line(error)})"
            ) from error
        return
    expected = allowed & {bool, int, float}
    if not expected or str in allowed:
        return
    if isinstance(value, bool):
        fits = bool in expected
    elif isinstance(value, int):
        fits = bool(expected & {int, float})
    else:
        fits = isinstance(value, float) and float in expected
    if not fits:
        names = " or ".join("True or False" if kind is bool else "a number" for kind in sorted(expected, key=str))
        raise ConfigurationError(f"model.trainer_arguments {name} is {value!r}: expected {names}")


def check_arguments(arguments: Seq2SeqTrainingArguments) -> None:
    """Tries what Hugging Face would try later: device, packages, optimizer, schedule, reports and the Hub.

    Raises:
        ConfigurationError: something of it fails.
    """
    if arguments.fp16 and arguments.device.type == "cpu":
        raise ConfigurationError("fp16 needs a GPU, and there is none: leave it out, or set model.bf16")
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise ConfigurationError("use_liger_kernel needs a package that is missing: pip install liger-kernel")
    _check_reports(arguments)
    _check_optimizer(arguments)
    if arguments.push_to_hub:
        _check_hub(arguments)


def _check_reports(arguments: Seq2SeqTrainingArguments) -> None:
    for name in arguments.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join([*INTEGRATION_TO_CALLBACK, "all", "none"])
            raise ConfigurationError(f"report_to is {name!r}: expected one of {known}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError, OSError) as error:
            raise ConfigurationError(f"report_to {name} cannot work: {one_line(error)}") from error


def _check_optimizer(arguments: Seq2SeqTrainingArguments) -> None:
    """Makes the optimizer and the schedule of a model with one weight."""
    model: Any = torch.nn.Linear(1, 1, bias=False, device=arguments.device)
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer = optimizer_class(model.parameters(), **options)
    except (ImportError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise ConfigurationError(f"optim {_text(arguments.optim)} cannot work: {one_line(error)}") from error
    steps, options = max(arguments.max_steps, 10), arguments.lr_scheduler_kwargs
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=options if isinstance(options, dict) else None,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"model.lr_scheduler_type {_text(arguments.lr_scheduler_type)} cannot work: {one_line(error)}; its options "
            "go into model.trainer_arguments as lr_scheduler_kwargs '{\"name\": value}'"
        ) from error


def _check_hub(arguments: Seq2SeqTrainingArguments) -> None:
    try:
        HfApi().whoami(token=arguments.hub_token)
    except (OfflineModeIsEnabled, LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(
            f"push_to_hub cannot reach the Hugging Face Hub with your token: {one_line(error)}; log in with "
            "`hf auth login`, or leave push_to_hub out and upload the finished model"
        ) from error


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
