"""Loads the Whisper model of a run, sets its language and task, and checks it against the samples."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

from common.errors import UserError, one_line
from config import ModelConfig
from features.feature_spec import FeatureSpec, ModelFilesError
from features.labels import NO_TIMESTAMPS, TranscriptEncoder, is_english_only, load_transcript_encoder
from sample_queue.protocol import PlanCard

logger = logging.getLogger(__name__)


class ModelMismatchError(UserError):
    """The model does not take the samples that the producer makes."""


def load_model(config: ModelConfig) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Loads a Whisper model and its processor, set to the configured language and task.

    Returns:
        The model in float32, and feature extractor and tokenizer as one.

    Raises:
        ModelFilesError: there is no such model, it is not a Whisper model, or its files do not fit each other.
        UserError: the model has no token for the language or the task.
    """
    load_transcript_encoder(config)  # refuses the folder before its weights are read
    model, processor = _read_model(config)
    if model.config.pad_token_id is None:
        end = model.config.eos_token_id
        model.config.pad_token_id = end[0] if isinstance(end, list) else end
    # Trainer warns of a missing key after it has loaded a checkpoint, unless it knows that the weight is a shared one.
    model._keys_to_ignore_on_save = {"proj_out.weight"} if model.config.tie_word_embeddings else None
    _set_prompt(model, processor.tokenizer, config)
    if config.freeze_feature_encoder:
        model.freeze_encoder()
    return model, processor


def _read_model(config: ModelConfig) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    try:
        model = WhisperForConditionalGeneration.from_pretrained(
            config.model_name, dtype=torch.float32, dropout=config.dropout
        )
        processor = WhisperProcessor.from_pretrained(config.model_name)
    except (OSError, ValueError, TypeError) as error:
        raise ModelFilesError(
            f"cannot load model.model_name {config.model_name!r} as a Whisper model ({one_line(error)})"
        ) from error
    if model.config.model_type != "whisper":
        raise ModelFilesError(
            f"model.model_name {config.model_name!r} is a {model.config.model_type} model, not a Whisper"
        )
    tokenizer = processor.tokenizer
    tokenizer.language = tokenizer.task = None  # what an earlier training has saved
    tokenizer.set_prefix_tokens(config.language or None, config.task if config.language else None, False)
    return model, processor


def _set_prompt(model: WhisperForConditionalGeneration, tokenizer: Any, config: ModelConfig) -> None:
    """Makes `generate` begin with the tokens that labels begin with: the saved folder then transcribes by itself.

    All ids come from the tokenizer, as those of the labels do: generation configs may be older, of another model, or
    missing. Source: `WhisperGenerationMixin._retrieve_init_tokens` of transformers, which reads these settings.
    """
    ids, generation = tokenizer.get_vocab(), model.generation_config
    english_only = is_english_only(config.model_name)
    settings: dict[str, Any] = {
        "decoder_start_token_id": model.config.decoder_start_token_id,
        "forced_decoder_ids": None,
        "return_timestamps": False,
        "no_timestamps_token_id": ids[NO_TIMESTAMPS],
        "is_multilingual": not english_only,
        "language": config.language.lower() or None,
        "task": config.task if config.language else None,
    }
    if config.language:
        settings["lang_to_id"] = {token: ids[token] for code in LANGUAGES if (token := f"<|{code}|>") in ids}
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in TASK_IDS if f"<|{task}|>" in ids}
    else:
        for name in ("lang_to_id", "task_to_id"):  # with them, generate would detect a language and begin with it
            if hasattr(generation, name):
                delattr(generation, name)
        if not english_only:
            logger.warning(
                "model.language is empty, and the model is multilingual: labels and generate begin without a language; "
                "other programs (whisper.cpp, faster-whisper) always give one, so name one if the model is for them"
            )
    if generation._from_model_config:  # there was no generation_config.json: one of our own, which is saved as such
        settings |= {"_from_model_config": False, "max_length": model.config.max_target_positions}
    for name, value in settings.items():
        setattr(generation, name, value)
    model.config.forced_decoder_ids = None  # generate takes those of config.json when the generation config has none


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
