"""From a transcript to a model's label tokens."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from common.errors import UserError, one_line
from config import ModelConfig
from features.feature_spec import ModelFilesError, load_model_config, model_files_error

START, NO_TIMESTAMPS = "<|startoftranscript|>", "<|notimestamps|>"
ENGLISH_VOCABULARY = 51864
"""Size of the vocabulary of OpenAI's English-only models. Source: `is_multilingual` in openai/whisper's model.py."""
DEFAULT_DECODER_START = 50257
"""Source: `WhisperConfig.decoder_start_token_id` of transformers."""
_CONTROL_TOKEN = re.compile(r"<\|.*\|>", re.DOTALL)
"""What Whisper's own special tokens look like; older tokenizer files do not mark all of them as special."""


class TranscriptEncoder:
    """Turns transcripts into a model's label tokens. Small, fast to pickle, and free of torch."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        """
        Args:
            tokenizer: adds the start, language, task and no-timestamps tokens before the text and end-of-text after it.
            max_tokens: most label tokens that the model takes, those special tokens included.
        """
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        *self.prompt, self._end = tokenizer.encode("").ids
        added = tokenizer.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special or _CONTROL_TOKEN.fullmatch(token.content)]
        longest_first = sorted(special, key=len, reverse=True)
        self._special_token = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, transcript: str) -> np.ndarray:
        """Labels of a transcript, int32 `[tokens]`, from `<|startoftranscript|>` to `<|endoftext|>`."""
        return np.array(self._tokenizer.encode(transcript).ids, dtype=np.int32)

    def is_too_long(self, transcript: str) -> bool:
        """Whether the transcript has more label tokens than the model takes.

        A byte-level tokenizer never makes more tokens than bytes, so most transcripts need not be encoded to know.
        """
        at_most = len(transcript.encode()) + len(self.prompt) + 1
        return at_most > self.max_tokens and len(self.encode(transcript)) > self.max_tokens

    def special_token_in(self, transcript: str) -> str | None:
        """The first of the tokenizer's special tokens that a transcript holds, such as `<|0.00|>` or `<|endoftext|>`.

        The tokenizer would read it as that token, not as text. Tokens that were added for text do not count.
        """
        found = self._special_token.search(transcript)
        return found[0] if found else None

    @property
    def digest(self) -> str:
        """Identity of tokenizer, language and task: equal labels for every text have equal digests."""
        return hashlib.blake2b(self._tokenizer.to_str().encode(), digest_size=16).hexdigest()


def load_transcript_encoder(model: ModelConfig) -> TranscriptEncoder:
    """Loads a model's tokenizer, set to the configured language and task.

    Raises:
        ModelFilesError: there is no such model, it has no Whisper tokenizer, or its files do not fit each other.
        UserError: the model has no token for the language or the task.
    """
    from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

    model_config = load_model_config(model.model_name)
    try:
        tokenizer = WhisperTokenizer.from_pretrained(model.model_name)
    except (OSError, ValueError, TypeError) as error:
        raise model_files_error(model.model_name, "Whisper's tokenizer files", error) from error
    vocabulary = tokenizer.get_vocab()
    _check_vocabulary(model.model_name, vocabulary, model_config)
    if model.language and is_english_only(model.model_name):
        raise UserError(
            f"model.language is {model.language!r} but {model.model_name} is an English-only model: "
            'set --model.language ""'
        )
    _set_prompt(tokenizer, model, vocabulary)
    # The model adds the start token by itself, so the labels that reach it are one shorter than ours.
    return TranscriptEncoder(tokenizer.backend_tokenizer, max_tokens=model_config["max_target_positions"] + 1)


def is_english_only(model_name: str) -> bool:
    """Whether a model takes neither language nor task, as OpenAI's models whose names end in .en.

    Raises:
        ModelFilesError: there is no such model.
    """
    generation = load_model_config(model_name, "generation_config.json", required=False)
    if "is_multilingual" in generation:
        return generation["is_multilingual"] is False
    return bool(load_model_config(model_name)["vocab_size"] == ENGLISH_VOCABULARY)


def _check_vocabulary(model_name: str, vocabulary: dict[str, int], model_config: dict[str, Any]) -> None:
    """Refuses a tokenizer that is not the model's."""
    start = vocabulary.get(START)
    if start is None or NO_TIMESTAMPS not in vocabulary:
        raise ModelFilesError(
            f"the tokenizer of model.model_name {model_name!r} has no {START} or no {NO_TIMESTAMPS}: expected "
            "Whisper's tokenizer.json, or vocab.json and merges.txt, beside the weights; copy them from the model "
            "that it was trained from"
        )
    tokens, rows = max(vocabulary.values()) + 1, model_config["vocab_size"]
    if tokens > rows:
        raise ModelFilesError(
            f"the tokenizer of model.model_name {model_name!r} has {tokens} tokens, the model {rows}: tokens were "
            "added without model.resize_token_embeddings; call that and save the model again, or take its own tokenizer"
        )
    decoder_start = model_config.get("decoder_start_token_id", DEFAULT_DECODER_START)
    if start != decoder_start:
        raise ModelFilesError(
            f"the tokenizer of model.model_name {model_name!r} has {START} at {start}, the model starts with "
            f"{decoder_start} (decoder_start_token_id): they belong to different models"
        )


def _set_prompt(tokenizer: Any, model: ModelConfig, vocabulary: dict[str, int]) -> None:
    """Makes the tokenizer begin labels with the configured language and task, and refuses one that has no token."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    tokenizer.language = tokenizer.task = None  # what an earlier training has saved with the tokenizer
    expected = [START]
    if model.language:
        code = TO_LANGUAGE_CODE.get(model.language.lower(), model.language.lower())
        expected += [f"<|{code}|>", f"<|{model.task}|>"]
    expected.append(NO_TIMESTAMPS)
    try:
        tokenizer.set_prefix_tokens(model.language or None, model.task if model.language else None, False)
    except ValueError as error:
        raise UserError(
            f"model.language is {model.language!r}, which Whisper does not know: take a related language, or none "
            f'(--model.language ""); {one_line(str(error).partition(". ")[2] or error, 3000)}'
        ) from error
    missing = [token for token in expected if token not in vocabulary]
    if missing:
        raise UserError(
            f"model.language is {model.language!r}, but {model.model_name} has no token {missing[0]}: take a related "
            'language that it knows, or none (--model.language "")'
        )
    prompt = tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens)
    if prompt != expected:
        raise ModelFilesError(
            f"the tokenizer of model.model_name {model.model_name!r} begins labels with {' '.join(prompt)}, expected "
            f"{' '.join(expected)}: its special tokens are not in Whisper's order"
        )
