"""The producer's script, but for its workers: they hand over samples that they have made at their start.

    python benchmarks/instant_producer.py     # the flags of prepro_add2radis.py

`producer_memory.py` starts it, to push millions of samples in minutes.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prepro_add2radis
from common.command_line import run
from producing import worker_pool
from producing.sample_worker import Chunk, SampleTask, SampleWorker, WorkerRecipe

READY = 256
"""Samples that each worker makes, so that their sizes vary as those of a stream do."""


class InstantWorker:
    """Makes its first samples as a worker does, and hands them over in random order from then on."""

    def __init__(self, recipe: WorkerRecipe) -> None:
        self._worker, self._ready = SampleWorker(recipe), Chunk(0)

    def make(self, tasks: Sequence[SampleTask]) -> Chunk:
        """As many samples as there are tasks; those of other positions, unless they are the first."""
        if len(self._ready.payloads) < READY:
            made = self._worker.make(tasks)
            self._ready.payloads += made.payloads
            return made
        payloads = random.choices(self._ready.payloads, k=len(tasks))
        return Chunk(tasks[0].draw.position, payloads, augmentations=Counter(original=len(tasks)), audio_s=1.0)


_worker: InstantWorker | None = None


def start_instant_worker(recipe: WorkerRecipe) -> None:
    """First act of a worker process."""
    global _worker
    _worker = InstantWorker(recipe)


def hand_over(tasks: Sequence[SampleTask]) -> Chunk:
    """What a worker process is asked to do."""
    if _worker is None:
        raise RuntimeError("this process is no worker")
    return _worker.make(tasks)


if __name__ == "__main__":
    vars(worker_pool).update(start_worker=start_instant_worker, make_samples=hand_over)
    run(prepro_add2radis.main)
