"""The Whisper model of a run: loaded, told its language, and held against the samples."""

from __future__ import annotations

from typing import Any

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

from common.errors import UserError, one_line
from config import ModelConfig
from features.feature_spec import FeatureSpec, ModelFilesError
from features.labels import TranscriptEncoder
from sample_queue.protocol import PlanCard


class ModelMismatchError(UserError):
    """The model does not take the samples that the producer makes."""


def load_model(config: ModelConfig) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Loads a Whisper model and its processor, set to the configured language and task.

    Returns:
        The model in float32, and feature extractor and tokenizer as one.

    Raises:
        ModelFilesError: there is no such model, or it is not a Whisper model.
        UserError: the language does not fit the model.
    """
    language = config.language or None
    try:
        model = WhisperForConditionalGeneration.from_pretrained(
            config.model_name, dtype=torch.float32, dropout=config.dropout
        )
        processor = WhisperProcessor.from_pretrained(
            config.model_name, language=language, task=config.task if language else None
        )
    except (OSError, ValueError) as error:
        raise ModelFilesError(
            f"cannot load model.model_name {config.model_name!r} as a Whisper model ({one_line(error)})"
        ) from error
    if model.config.model_type != "whisper":
        raise ModelFilesError(
            f"model.model_name {config.model_name!r} is a {model.config.model_type} model, not a Whisper"
        )
    if model.config.pad_token_id is None:
        end = model.config.eos_token_id
        model.config.pad_token_id = end[0] if isinstance(end, list) else end
    # Trainer warns of a missing key after it has loaded a checkpoint, unless it knows that the weight is a shared one.
    model._keys_to_ignore_on_save = {"proj_out.weight"} if model.config.tie_word_embeddings else None
    _set_language(model, processor, config)
    if config.freeze_feature_encoder:
        model.freeze_encoder()
    return model, processor


def _set_language(model: WhisperForConditionalGeneration, processor: WhisperProcessor, config: ModelConfig) -> None:
    """Puts language and task where `generate` looks for them, so that the saved folder transcribes by itself."""
    generation = model.generation_config
    settings: dict[str, Any] = {"forced_decoder_ids": None}
    if config.language:
        if getattr(generation, "is_multilingual", True) is False:
            raise UserError(
                f"model.language is {config.language!r} but {config.model_name} is an English-only model: "
                'set --model.language ""'
            )
        settings |= {"language": config.language.lower(), "task": config.task}
        if not hasattr(generation, "lang_to_id"):  # checkpoints from before transformers 4.31 lack what generate needs
            ids = processor.tokenizer.get_added_vocab()
            settings |= {
                "is_multilingual": True,
                "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids},
                "task_to_id": {task: ids[f"<|{task}|>"] for task in TASK_IDS},
                "no_timestamps_token_id": ids["<|notimestamps|>"],
            }
    for name, value in settings.items():
        setattr(generation, name, value)


def check_model_fits(
    card: PlanCard, model: WhisperForConditionalGeneration, spec: FeatureSpec, encoder: TranscriptEncoder
) -> None:
    """Refuses a model that would misread the samples.

    Raises:
        ModelMismatchError: mel bins, window or tokenizer differ.
    """
    config, window_frames = model.config, 2 * model.config.max_source_positions
    remedy = "start both scripts with the same --model.model_name, --model.language and --model.task"
    for what, samples, models in (
        ("mel bins", card.num_mel_bins, config.num_mel_bins),
        ("mel bins", card.num_mel_bins, spec.num_mel_bins),
        ("frames in a window", card.window_frames, window_frames),
        ("frames in a window", card.window_frames, spec.window_frames),
    ):
        if samples != models:
            raise ModelMismatchError(
                f"the samples in the queue have {samples} {what}, the model takes {models}: {remedy}"
            )
    if card.tokenizer != encoder.digest:
        raise ModelMismatchError(
            "the samples in the queue have labels of another tokenizer, language or task than the model's "
            f"(digest {card.tokenizer[:12]}, expected {encoder.digest[:12]}): {remedy}"
        )
