"""The languages of an evaluation. They stand in its labels, before the text, as what generate has to begin with."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from features.labels import NO_TIMESTAMPS

_KEY = re.compile(r"eval_(?P<language>[a-z]+)_(?P<rate>wer|cer)")


def own_prompts(labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor | None:
    """What `generate` begins with for each recording of a batch.

    Args:
        labels: int64 `[recordings, tokens]`, from the token after `<|startoftranscript|>` on.
        tokenizer: set to the run's language and task.

    Returns:
        int64 `[recordings, 4]`: start, language, task, no timestamps. None: the run's for all of them, or the
        recordings differ in whether they have a language, which one batch of `generate` cannot do.
    """
    start, *of_the_run = tokenizer.prefix_tokens
    last = int(tokenizer.get_vocab()[NO_TIMESTAMPS])
    ends = labels.eq(last).int().argmax(dim=1) + 1
    if len(ends.unique()) != 1:
        return None
    prompts = labels[:, : int(ends[0])]
    if prompts.shape[1] == len(of_the_run) and prompts.eq(prompts.new_tensor(of_the_run)).all():
        return None
    return torch.cat([prompts.new_full((len(prompts), 1), start), prompts], dim=1)


def rows_by_language(labels: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Rows of each language, by its code; "none": without one.

    Args:
        labels: int64 `[recordings, tokens]`, as for `own_prompts`.
        tokenizer: the model's.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, token in enumerate(tokenizer.convert_ids_to_tokens(labels[:, 0].tolist())):
        code = str(token)[2:-2]
        rows[code if token == f"<|{code}|>" and code in LANGUAGES else "none"].append(row)
    return dict(sorted(rows.items()))


def language_rates(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Language → its `wer` and `cer` among the metrics of an evaluation; empty when it has one language only."""
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    for key, value in metrics.items():
        if match := _KEY.fullmatch(key):
            rates[match["language"]][match["rate"]] = value
    return dict(rates)


def describe_rates(rates: Mapping[str, Mapping[str, float]]) -> str:
    """The rates of all languages in one line."""
    return "; ".join(
        f"{language} " + ", ".join(f"{name.upper()} {value:.4f}" for name, value in values.items())
        for language, values in rates.items()
    )


def pick(texts: Sequence[str], rows: Sequence[int]) -> list[str]:
    """Those texts that stand in these rows."""
    return [texts[row] for row in rows]
