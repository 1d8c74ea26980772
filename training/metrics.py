"""Word and character error rate, raw and normalised, computed without network and cache.

Both are corpus-level: all errors over all reference words (or characters), so a long recording weighs more than a
short one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import jiwer
import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase

APOSTROPHES = frozenset("'’ʼ‘`´")
"""Characters that join the parts of a word (don't): dropped, where other punctuation separates words."""
RATES = ("wer", "cer", "wer_normalized", "cer_normalized")
"""Names of the error rates that an evaluation reports."""
EXAMPLES_KEPT = 5
IGNORED_LABEL = -100

_INPUTS = """
Args:
    predictions: what the model wrote, a string per recording.
    references: the transcripts, in the same order.
"""


def normalize(text: str) -> str:
    """Removes differences that are no mistakes: upper case, punctuation, symbols, white space, invisible characters.

    Unlike Whisper's own BasicTextNormalizer it keeps combining marks (Unicode category M), without which words of
    Bengali, Hindi or Thai would be split.

    Args:
        text: any text.

    Returns:
        The text in NFKC form and lower case, its words separated by single spaces; may be empty.
    """
    folded = unicodedata.normalize("NFKC", text.translate(_DROP_APOSTROPHES)).lower()
    return " ".join("".join(_fold_character(character) for character in folded).split())


_DROP_APOSTROPHES = dict.fromkeys(map(ord, APOSTROPHES))  # before NFKC, which splits ´ in two


def _fold_character(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "PSZ" or character == "\u200b":  # a zero-width space separates words all the same
        return " "
    return "" if category == "Cf" else character


class _ErrorRate(evaluate.Metric):
    """An edit distance of jiwer over the length of the references.

    An empty reference adds no length, and every word (or character) written for it counts as an insertion. When all
    references are empty, the rate is the number of insertions.
    """

    unit: str
    source: str
    distance: Callable[..., Any]

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # not created: with keep_in_memory nothing is written

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"(substitutions + deletions + insertions) / {self.unit}s of the references",
            citation=self.source,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> float:
        counts = type(self).distance(list(references), list(predictions))
        length = counts.hits + counts.substitutions + counts.deletions
        return (counts.substitutions + counts.deletions + counts.insertions) / max(length, 1)


class WordErrorRate(_ErrorRate):
    """WER: `compute(predictions=[...], references=[...])` gives a float from 0, above 1 with many insertions."""

    unit = "word"
    source = "jiwer.process_words"
    distance = staticmethod(jiwer.process_words)


class CharacterErrorRate(_ErrorRate):
    """CER: `compute(predictions=[...], references=[...])` gives a float from 0, above 1 with many insertions."""

    unit = "character"
    source = "jiwer.process_characters"
    distance = staticmethod(jiwer.process_characters)


class TranscriptionMetrics:
    """`compute_metrics` of the trainer: tokens → transcripts → error rates; keeps a few of the last transcripts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Args:
            tokenizer: the model's, to decode labels and predictions.
        """
        self._tokenizer = tokenizer
        self._word_error_rate = WordErrorRate()
        self._character_error_rate = CharacterErrorRate()
        self.examples: list[tuple[str, str]] = []
        """Reference and hypothesis of the first recordings of the last evaluation."""

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """
        Args:
            prediction: token ids `[recordings, tokens]`, padded with -100 or pad tokens.

        Returns:
            `wer`, `cer`, `wer_normalized`, `cer_normalized`: 0 is perfect; more than 1 when the model writes more than
            was said.
        """
        predictions = prediction.predictions
        hypotheses = self._decode(predictions[0] if isinstance(predictions, tuple) else predictions)
        references = self._decode(prediction.label_ids)
        self.examples = list(zip(references, hypotheses, strict=True))[:EXAMPLES_KEPT]
        return error_rates(references, hypotheses, self._word_error_rate, self._character_error_rate)

    def _decode(self, tokens: Any) -> list[str]:
        tokens = np.where(np.asarray(tokens) == IGNORED_LABEL, self._tokenizer.pad_token_id, tokens)
        return [text.strip() for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def error_rates(
    references: Sequence[str],
    hypotheses: Sequence[str],
    word_error_rate: WordErrorRate | None = None,
    character_error_rate: CharacterErrorRate | None = None,
) -> dict[str, float]:
    """The four error rates of hypotheses against references, as `TranscriptionMetrics` reports them.

    Raises:
        ValueError: the two differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    if not references:
        raise ValueError("no transcripts to compare: error rates need at least one reference")
    raw = {"predictions": list(hypotheses), "references": list(references)}
    normalized = {name: [normalize(text) for text in texts] for name, texts in raw.items()}
    wer, cer = word_error_rate or WordErrorRate(), character_error_rate or CharacterErrorRate()
    return {
        "wer": wer.compute(**raw),
        "cer": cer.compute(**raw),
        "wer_normalized": wer.compute(**normalized),
        "cer_normalized": cer.compute(**normalized),
    }
