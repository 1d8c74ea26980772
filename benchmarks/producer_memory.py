"""Whether the producer's memory levels off: its parent process over many samples, with a consumer that keeps up.

    python benchmarks/producer_memory.py                       # a minute; --json FILE writes the figures as well
    python benchmarks/producer_memory.py --samples 3000000     # a quarter of an hour

The parent is prepro_add2radis.py itself, with its real pool and writer, on a manifest of 7,000 rows; its workers hand
over samples that were made before (instant_producer.py), of 1 to 6 s of audio. The consumer is this process, the server
another. Printed is the parent's resident memory since the line before: the median and the range of the readings, one
per batch that the consumer takes.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import tyro

from benchmarks.clips import make_clips, read_rows, write_manifest
from benchmarks.harness import MIB, Figure, embedded, furnish, report, script, script_flags, write_json
from config import RedisConfig
from sample_queue.reader import SampleReader, trainer_token

ROWS = 7_000
SAMPLES_PER_EPOCH = 2 * ROWS
BATCH = 128
"""Samples that the consumer takes, and lets go of, at once."""
MARKS = (1, 10, 25, 50, 75, 100)
"""When the memory is told, in per cent of the samples."""
LEVEL = MARKS.index(25)
"""The mark from which on the memory should not grow: before, the workers start and the pool fills."""


@dataclass
class Settings:
    """What the command line sets."""

    json: Path | None = None
    """File for the figures."""
    samples: int = 150_000
    """Samples per run."""
    workers: int = 2
    """Worker processes."""


def consume(config: RedisConfig, samples: int) -> Iterator[int]:
    """A trainer that does nothing but take samples and let go of them. Yields the position after each batch."""
    trained = RawValue("q", 0)
    reader = SampleReader(config, trainer_token(), trained, threading.Event())
    reader.attach(0)
    for start in range(0, samples, BATCH):
        stop = min(start + BATCH, samples)
        reader.take(start, stop - start)
        trained.value = stop
        reader.commit(stop)
        yield stop
    reader.finish()


def measure(folder: Path, settings: Settings) -> list[Figure]:
    """The parent's memory on the way, printed as soon as it is known."""
    figures: list[Figure] = []
    readings: list[float] = []
    marks = list(MARKS)
    with embedded(0.2) as config:
        flags = script_flags(folder, folder / "rows.csv", config.port, config.namespace)
        flags = [flag for flag in flags if "num_workers" not in flag]
        flags += [f"--data.num_workers={settings.workers}", f"--data.epochs={epochs(settings)}"]
        flags += ["--redis.sleep_seconds=0.1"]
        with script("benchmarks/instant_producer.py", flags) as producer:
            parent = psutil.Process(producer.pid)
            for position in consume(config, settings.samples):
                readings.append(parent.memory_info().rss / MIB)
                if 100 * position >= marks[0] * settings.samples:
                    name = f"parent, up to {marks.pop(0)} % of {settings.samples} samples"
                    figures.append(Figure(name, statistics.median(readings), "MB", min(readings), max(readings)))
                    report(figures[-1:])
                    readings.clear()
    growth = Figure("parent, growth from 25 % to 100 %", figures[-1].value - figures[LEVEL].value, "MB", at_most=2)
    report([growth])
    return [*figures, growth]


def epochs(settings: Settings) -> int:
    """Epochs that are enough for the samples, and for what the producer makes ahead."""
    return math.ceil(settings.samples / SAMPLES_PER_EPOCH) + 1


def write_rows(folder: Path) -> None:
    """Clips, and the manifest rows.csv that repeats them."""
    make_clips(folder / "clips", 1.0, 6.0)
    write_manifest(folder / "rows.csv", read_rows(folder / "clips"), ROWS)


def main() -> None:
    """Measures, prints, writes."""
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        furnish(folder)
        write_rows(folder)
        write_json(measure(folder, settings), settings.json)


if __name__ == "__main__":
    main()
