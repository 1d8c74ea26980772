"""What Hugging Face's `generate` writes greedily for sample files, to hold an export against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from audio.audio_file import RecordingError
from common.errors import UserError
from storage.remote_files import SourceError
from tools.long_audio import AudioBlocks

MAX_NEW_TOKENS = 64
"""Tokens that are compared at most."""


@dataclass(frozen=True)
class GreedyReference:
    """A model's greedy transcripts of samples, and all that another runtime needs to repeat them."""

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    samples: Sequence[str]
    features: torch.Tensor
    """float32 `[samples, mel bins, frames]`."""
    prompt: list[int]
    """Tokens that decoding begins with."""
    suppressed: list[int]
    """Tokens that are never written."""
    suppressed_first: list[int]
    """Tokens that are not written first."""
    tokens: list[list[int]]
    """What Hugging Face writes for each sample, without prompt and end."""

    @property
    def end(self) -> int:
        """The token that ends a transcript."""
        end: Any = self.model.config.eos_token_id
        return int(end)

    def greedy(self, next_logits: Callable[[int, list[int]], np.ndarray]) -> list[list[int]]:
        """Decodes all samples with another runtime's forward pass.

        Args:
            next_logits: index of a sample and the tokens so far → float `[vocabulary]` for the next one.
        """
        return [self._greedy(next_logits, sample) for sample in range(len(self.samples))]

    def _greedy(self, next_logits: Callable[[int, list[int]], np.ndarray], sample: int) -> list[int]:
        written: list[int] = []
        while len(written) < MAX_NEW_TOKENS:
            logits = next_logits(sample, self.prompt + written).copy()
            logits[self.suppressed + (self.suppressed_first if not written else [])] = -np.inf
            token = int(logits.argmax())
            if token == self.end:
                break
            written.append(token)
        return written

    def differences(self, written: Sequence[Sequence[int]]) -> list[tuple[str, str, str]]:
        """Samples whose tokens differ: the file, what Hugging Face writes, what the other runtime does."""
        decode = self.processor.tokenizer.decode
        return [
            (sample, decode(ours), decode(list(theirs)))
            for sample, ours, theirs in zip(self.samples, self.tokens, written, strict=True)
            if ours != list(theirs)[:MAX_NEW_TOKENS]
        ]


def make_reference(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, samples: Sequence[str]
) -> GreedyReference:
    """Transcribes samples with Hugging Face.

    Args:
        model: in float32, on the CPU.
        processor: the model's.
        samples: audio files; the model's first window of each is taken.

    Raises:
        UserError: a sample can't be read.
    """
    extractor = processor.feature_extractor
    generation: Any = model.generation_config
    waveforms = [_first_window(sample, extractor.sampling_rate, extractor.chunk_length) for sample in samples]
    features = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features
    spoken: dict[str, Any] = {}
    if getattr(generation, "is_multilingual", True):
        spoken = {
            "language": getattr(generation, "language", None) or "english",
            "task": getattr(generation, "task", None) or "transcribe",
        }
    processor.tokenizer.set_prefix_tokens(**{"language": None, "task": None, **spoken}, predict_timestamps=False)
    end = model.config.eos_token_id
    with torch.inference_mode():
        answers = model.generate(
            features, **spoken, return_timestamps=False, num_beams=1, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
        )
    tokens = [answer[: answer.index(end)] if end in answer else answer for answer in answers.tolist()]
    return GreedyReference(
        model, processor, samples, features, list(processor.tokenizer.prefix_tokens),
        list(generation.suppress_tokens or []), list(generation.begin_suppress_tokens or []), tokens,
    )  # fmt: skip


def _first_window(sample: str, sampling_rate: int, seconds: int) -> np.ndarray:
    blocks = AudioBlocks(sample, sampling_rate, peak_normalize=False)
    try:
        return blocks.fill(seconds)
    except (RecordingError, SourceError) as error:
        raise UserError(f"cannot read the sample {sample}: {error}") from error
    finally:
        blocks.close()
