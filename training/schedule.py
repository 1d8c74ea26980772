"""Which positions of the plan each optimizer step trains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Which positions the optimizer steps of a run train."""

    start_step: int
    """Steps behind the checkpoint that the run goes on from; 0 for a new run."""
    start_position: int
    """Position of that checkpoint."""
    stop_position: int
    """Position before which everything will be trained at the end."""
    steps: int
    """Optimizer steps at the end, those behind the checkpoint included."""
    global_batch: int
    """Samples per optimizer step, over all ranks and accumulated micro-batches."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.steps == self.start_step

    def position(self, step: int) -> int:
        """All samples before this position have been trained after `step` optimizer steps."""
        return min(self.start_position + (step - self.start_step) * self.global_batch, self.stop_position)


def make_schedule(
    planned: int, *, start_step: int, start_position: int, global_batch: int, ranks: int, max_steps: int
) -> Schedule:
    """Computes a run's steps.

    One process trains a last, smaller batch. Several ranks leave it out and all stop on the same step: if one of them
    had no samples left, the others would wait for it for ever.

    Args:
        planned: samples in the plan.
        start_step: steps behind the checkpoint, 0 without one.
        start_position: its position.
        global_batch: samples per optimizer step.
        ranks: processes that train together.
        max_steps: most steps, those behind the checkpoint included; -1 for no limit.
    """
    remaining = planned - start_position
    steps = remaining // global_batch if ranks > 1 else -(-remaining // global_batch)
    if max_steps > 0:
        steps = max(0, min(steps, max_steps - start_step))
    stop_position = min(planned, start_position + steps * global_batch)
    return Schedule(start_step, start_position, stop_position, start_step + steps, global_batch)
