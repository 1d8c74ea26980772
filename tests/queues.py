"""The two ends of a queue of opaque payloads, for tests that need no model; imported by processes of tests too."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from config import RedisConfig
from sample_queue.errors import RunFinished
from sample_queue.protocol import PlanCard
from sample_queue.reader import SampleReader
from sample_queue.writer import SampleWriter

CARD = PlanCard("plan-a", 100_000, 1000, 80, 3000, "float16", "tokenizer", 500_000)


def payload(position: int, size: int = 40) -> bytes:
    """A sample as opaque bytes that names its position."""
    return b"%09d" % position + b"." * (size - 9)


def payloads(start: int, stop: int, size: int = 40) -> list[bytes]:
    """The samples at the positions `start` … `stop - 1`."""
    return [payload(position, size) for position in range(start, stop)]


class Trainer:
    """A reader with what it shares between processes."""

    def __init__(self, config: RedisConfig, token: str = "trainer-1", attach: int | None = 0) -> None:
        self.trained = SimpleNamespace(value=attach or 0)
        self.stop = threading.Event()
        self.reader = SampleReader(config, token, self.trained, self.stop)
        if attach is not None:
            self.reader.attach(attach)

    def reader_of_a_rank(self) -> SampleReader:
        """Another process's reader of the same trainer."""
        reader = SampleReader(self.reader.config, self.reader.trainer, self.trained, self.stop)
        reader.card = self.reader.card
        return reader

    def train(self, start: int, stop: int) -> list[bytes]:
        """Takes, trains and trims one batch."""
        batch = self.reader.take(start, stop - start)
        self.trained.value = stop
        self.reader.trim(stop)
        return batch


def make_writer(config: RedisConfig, position: int = 0) -> SampleWriter:
    """A producer's end that has taken the stream, or made it at `position`."""
    writer = SampleWriter(config, CARD)
    writer.open(position)
    return writer


def produce(writer: SampleWriter, tail: int, end: int, size: int = 40, step: int = 16) -> None:
    """Pushes up to `end`, follows the trainer, and ends when it is done."""
    try:
        while True:
            while tail < end:
                tail = writer.push(tail, payloads(tail, min(end, tail + step), size))
            tail = writer.wait_at_end(tail)
    except RunFinished:
        writer.close()


def feed(config: RedisConfig, size: int) -> None:
    """A producer's process: pushes without end, until the trainer is done."""
    writer = SampleWriter(config, CARD)
    produce(writer, writer.open(), 10**6, size)


def take_stripes(
    config: RedisConfig, trained: Any, done: Any, barrier: Any, rank: int, batch: int, steps: int, size: int
) -> None:
    """A rank's process: takes its batch of each step, as the ranks of one trainer do.

    Args:
        trained: shared, the position before which all is trained.
        done: shared, the steps that each rank has taken.
        barrier: shared, where the ranks meet after each step, as they do to exchange gradients.
        rank: this one.
        batch: samples per rank and step.
        steps: how many to take.
        size: of the payloads that it expects.
    """
    reader = SampleReader(config, "trainer-1", trained, threading.Event())
    reader.card = CARD
    for step in range(steps):
        start = (step * barrier.parties + rank) * batch
        assert reader.take(start, batch) == payloads(start, start + batch, size)
        done[rank] = step + 1
        barrier.wait(60)
