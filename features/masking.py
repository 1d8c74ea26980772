"""SpecAugment: masks of time and of frequency on the log-mel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LARGEST_TIME_SHARE = 0.2
"""All time masks together cover at most this share of the frames."""
_LARGEST_FREQ_SHARE = 0.5
"""All frequency masks together cover at most this share of the mel bins."""


def mask_log_mel(
    log_mel: Floats,
    time_masks: int,
    time_mask_max_frames: int,
    freq_masks: int,
    freq_mask_max_bins: int,
    rng: np.random.Generator,
) -> Floats:
    """Masks blocks of time and of frequency with the mean of the log-mel, float32 [mel bins, frames].

    A mask is 1 to `*_max_*` wide, and may overlap another. In a short clip masks are narrower: together they never take
    more than a fifth of the frames nor half of the bins.

    Source: Park et al. 2019, "SpecAugment" (arXiv 1904.08779), with its p = 0.2. The features there have zero mean and
    the masks are 0: here the mean is used, which also differs from the value that means padding.
    """
    masked = log_mel.copy()
    mean = log_mel.mean(dtype=np.float64)
    bins, frames = log_mel.shape
    for start, stop in _mask_spans(frames, time_masks, time_mask_max_frames, _LARGEST_TIME_SHARE, rng):
        masked[:, start:stop] = mean
    for start, stop in _mask_spans(bins, freq_masks, freq_mask_max_bins, _LARGEST_FREQ_SHARE, rng):
        masked[start:stop] = mean
    return masked


def _mask_spans(size: int, masks: int, widest: int, share: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    widest = min(widest, int(size * share / max(masks, 1)))
    spans = []
    for _ in range(masks if widest else 0):
        width = int(rng.integers(1, widest + 1))
        start = int(rng.integers(size - width + 1))
        spans.append((start, start + width))
    return spans
