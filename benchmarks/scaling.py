"""How the producer grows: two workers beside one, and what the one pushing process costs.

    python benchmarks/scaling.py              # both; --json FILE writes the figures as well
    python benchmarks/scaling.py workers      # one of: workers, pusher

workers   samples/s of the real worker pool with two workers, over one worker's, in turn; one core per worker
pusher    CPU time of the process that pushes, with chunks that are ready-made and handed over by worker processes: what
          it takes to receive a chunk, push it and keep the tally
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tyro

from benchmarks.clips import make_clips
from benchmarks.harness import Figure, clips_recipe, embedded, furnish, pinned, race, report, write_json
from common.process_executor import ProcessExecutor
from producing.plan_card import make_card
from producing.producer_report import Tally
from producing.recipe import StreamRecipe
from producing.sample_worker import Chunk
from producing.worker_pool import SampleMaker, WorkerPool
from sample_queue.writer import SampleWriter

CHUNK = 32


@dataclass
class Settings:
    """What the command line sets."""

    what: tyro.conf.Positional[tuple[str, ...]] = ("workers", "pusher")
    """Which figures to measure."""
    json: Path | None = None
    """File for the figures."""
    rounds: int = 7
    """Rounds of one and two workers in turn."""
    samples: int = 512
    """Samples per worker and round."""
    pushed: int = 8_000
    """Samples to push, twice; the server keeps them all."""


class Pool:
    """The real worker pool, each of its workers on a core of its own."""

    def __init__(self, recipe: StreamRecipe, workers: int) -> None:
        self._pool, self._next = WorkerPool(recipe, workers), 0
        self._workers = workers

    def make(self, count: int) -> int:
        """Takes chunks, in order; returns how many samples."""
        made = 0
        while made < count:
            made += len(self._pool.chunk_at(self._next + made, lambda: None).payloads)
        self._next += made
        return made

    def after(self) -> None:
        """Lets the workers finish what they make ahead, so that they do not work in another's turn."""
        time.sleep(1.0)

    def before(self) -> None:
        """Takes what was made ahead."""
        self.make(2 * self._workers * CHUNK)

    def close(self) -> None:
        """Ends the workers."""
        self._pool.__exit__(None, None, None)


def measure_workers(folder: Path, settings: Settings) -> list[Figure]:
    """Two workers on two cores beside one, by the real pool."""
    recipe = clips_recipe(folder, folder / "clips", epochs=1000)
    with pinned(2):
        one, two = Pool(recipe, 1), Pool(recipe, 2)
        try:
            rates = race(
                {"one worker": (one, settings.samples), "two workers": (two, 2 * settings.samples)}, settings.rounds
            )
        finally:
            one.close()
            two.close()
    return [*(rates.rate(name) for name in rates.rounds), rates.ratio("two workers", "one worker", at_least=1.8)]


def measure_pusher(folder: Path, settings: Settings) -> list[Figure]:
    """CPU time of this process while it receives ready-made chunks from a worker process and pushes them."""
    recipe = clips_recipe(folder, folder / "clips", epochs=1000)
    ready = SampleMaker(recipe).make_chunk(0, CHUNK)
    chunks = settings.pushed // CHUNK
    with embedded(2.0) as config:
        writer, tally = SampleWriter(config, make_card(recipe)), Tally()
        executor = ProcessExecutor(1, _keep, (ready,))
        tail = writer.open()
        executor.submit(_hand_over).result()  # starts the worker
        started = time.process_time()
        for _ in range(chunks):
            tail = writer.push(tail, ready.payloads)
        pushing_s = time.process_time() - started
        started = time.process_time()
        for _ in range(chunks):
            chunk = executor.submit(_hand_over).result()
            tail = writer.push(tail, chunk.payloads, chunk.rejected)
            tally.add(chunk)
        all_s = time.process_time() - started
        executor.shutdown()
        writer.close()
    share = 100 * 1000 / (chunks * CHUNK)
    return [
        Figure("pushing alone, per 1,000 samples/s", pushing_s * share, "% of a core"),
        Figure("receiving and pushing, per 1,000 samples/s", all_s * share, "% of a core", at_most=10),
    ]


def _keep(chunk: Chunk) -> None:
    global _ready
    _ready = chunk


def _hand_over() -> Chunk:
    if _ready is None:
        raise RuntimeError("this process is no worker")
    return _ready


_ready: Chunk | None = None
"""In a worker process: the chunk that it hands over again and again."""

MEASUREMENTS = {"workers": measure_workers, "pusher": measure_pusher}


def measure(settings: Settings) -> list[Figure]:
    """Measures and prints."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        furnish(folder)
        make_clips(folder / "clips")
        for what in settings.what:
            found = MEASUREMENTS[what](folder, settings)
            report(found)
            figures += found
    return figures


def main() -> None:
    """Measures, prints, writes."""
    settings = tyro.cli(Settings, description=__doc__)
    write_json(measure(settings), settings.json)


if __name__ == "__main__":
    main()
