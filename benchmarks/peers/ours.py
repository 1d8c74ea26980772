"""This project's producer on one core: as it is, and with the pushing that usually another process does."""

from __future__ import annotations

from producing.worker_pool import SampleMaker
from sample_queue.writer import SampleWriter

CHUNK = 32


class Worker:
    """One worker's work: samples of the plan, encoded."""

    def __init__(self, maker: SampleMaker) -> None:
        self._maker, self._next = maker, 0

    def make(self, count: int) -> int:
        """Makes `count` samples; returns how many."""
        for start in range(self._next, self._next + count, CHUNK):
            self._maker.make_chunk(start, min(start + CHUNK, self._next + count))
        self._next += count
        return count


class Producer:
    """A worker's work and the pushing, in one process."""

    def __init__(self, maker: SampleMaker, writer: SampleWriter) -> None:
        self._maker, self._writer, self._tail = maker, writer, writer.open()

    def make(self, count: int) -> int:
        """Makes and pushes `count` samples; returns how many."""
        end = self._tail + count
        while self._tail < end:
            chunk = self._maker.make_chunk(self._tail, min(self._tail + CHUNK, end))
            self._tail = self._writer.push(self._tail, chunk.payloads, chunk.rejected)
        return count
