"""From a transcript to a model's label tokens."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
from tokenizers import Tokenizer

from common.errors import UserError
from config import ModelConfig
from features.feature_spec import ModelFilesError, model_files_error

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
        self._special_tokens = len(tokenizer.encode("").ids)
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
        at_most = len(transcript.encode()) + self._special_tokens
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
        ModelFilesError: there is no such model, or it has no Whisper tokenizer.
        UserError: Whisper does not know the language.
    """
    from transformers.models.whisper.tokenization_whisper import WhisperTokenizer
    from transformers.utils.hub import cached_file

    try:
        tokenizer = WhisperTokenizer.from_pretrained(model.model_name)
        config_path = cached_file(model.model_name, "config.json") or ""
        with open(config_path, encoding="utf-8") as file:
            model_config = json.load(file)
    except (OSError, ValueError) as error:
        raise model_files_error(model.model_name, "a config.json and Whisper's tokenizer files", error) from error
    language = model.language or None
    try:
        tokenizer.set_prefix_tokens(language=language, task=model.task if language else None, predict_timestamps=False)
    except ValueError as error:
        raise UserError(f"model.language is {model.language!r}: {str(error).partition('. ')[2] or error}") from error
    if "max_target_positions" not in model_config:
        raise ModelFilesError(
            f"the config.json of {model.model_name!r} has no max_target_positions: not a Whisper model?"
        )
    # The model adds the start token by itself, so the labels that reach it are one shorter than ours.
    return TranscriptEncoder(tokenizer.backend_tokenizer, max_tokens=model_config["max_target_positions"] + 1)
