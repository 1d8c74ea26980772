"""The loss of an optimizer step: the mean over all its label tokens, wherever they were computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TokenMeanLoss:
    """Cross-entropy, as the mean over all label tokens of an optimizer step: its micro-batches and ranks together.

    Whisper's forward takes any keyword, so `Trainer` would leave the division to a model that knows nothing of it, and
    the gradients would come out as many times too large as there are micro-batches.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """
        Args:
            label_smoothing: share of the target that is spread over all tokens, 0 to 1.
        """
        self._label_smoothing = label_smoothing

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """
        Args:
            outputs: of the model, with `logits` `[batch, tokens, vocabulary]`.
            labels: int64 `[batch, tokens]`, -100 where there is none.
            num_items_in_batch: label tokens in the whole optimizer step; None: those in `labels`.
        """
        total = self._cross_entropy(outputs, labels, "sum")
        tokens = labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        return total / tokens

    def per_recording(self, outputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each recording, summed over its tokens, and the number of its tokens; both `[batch]`."""
        losses = self._cross_entropy(outputs, labels, "none").reshape(labels.shape)
        return losses.sum(dim=1), labels.ne(-100).sum(dim=1)

    def _cross_entropy(self, outputs: Any, labels: torch.Tensor, reduction: str) -> torch.Tensor:
        logits = outputs["logits"]
        return nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            reduction=reduction,
            label_smoothing=self._label_smoothing,
        )
