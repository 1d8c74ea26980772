"""The plan's card: what a trainer must know of the plan, as the queue keeps it."""

from __future__ import annotations

import numpy as np

from producing.recipe import StreamRecipe
from sample_queue.protocol import PlanCard

_LARGEST_METADATA_BYTES = 2048
"""Room for a sample's metadata, whose longest part is the recording's id."""


def make_card(recipe: StreamRecipe) -> PlanCard:
    """The card of a stream's plan."""
    spec, dtype = recipe.spec, recipe.config.data.feature_dtype
    feature_bytes = spec.num_mel_bins * spec.window_frames * np.dtype(dtype).itemsize
    label_bytes = recipe.encoder.max_tokens * np.dtype(np.int32).itemsize
    return PlanCard(
        fingerprint=recipe.fingerprint,
        planned=len(recipe.plan),
        samples_per_epoch=recipe.plan.samples_per_epoch,
        num_mel_bins=spec.num_mel_bins,
        window_frames=spec.window_frames,
        feature_dtype=dtype,
        tokenizer=recipe.encoder.digest,
        max_sample_bytes=feature_bytes + label_bytes + _LARGEST_METADATA_BYTES,
        corpora=[each.name for each in recipe.recordings.corpora],
    )
