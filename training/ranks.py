"""Messages between the processes of one training run (its ranks). No-ops without torch.distributed."""

from __future__ import annotations

import torch
from torch import distributed

from common.errors import UserError
from sample_queue.errors import StopRequested

GOES_ON, STOPS, FAILS = 0.0, 1.0, 2.0
"""What a rank reports before a step; the highest of all ranks counts."""


class OtherRankError(UserError):
    """Another process of this run failed; its own message says why."""


def agree(failure: Exception | None, device: torch.device) -> None:
    """Makes all ranks go on together, or none. Must be called on all of them.

    Args:
        failure: why this rank can't go on; None: it can.
        device: the rank's own.

    Raises:
        Exception: `failure`.
        StopRequested: another rank was told to stop.
        OtherRankError: another rank failed.
    """
    state = GOES_ON if failure is None else STOPS if isinstance(failure, StopRequested) else FAILS
    if distributed.is_initialized():
        shared = torch.tensor([state], device=device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        worst = shared.item()
        if worst > state:
            failure = StopRequested("another process of this run was told to stop")
            if worst == FAILS:
                failure = OtherRankError("another process of this run failed: its message says why")
    if failure is not None:
        raise failure


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Adds up numbers, each over all ranks. Must be called on all of them."""
    if not distributed.is_initialized():
        return values
    shared = torch.tensor(values, device=device)
    distributed.all_reduce(shared)
    return shared.tolist()
