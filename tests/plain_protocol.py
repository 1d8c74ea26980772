"""The control of the chaos runs: a script whose trainer pops samples as most queues are read, by plain LPOP.

    python -m tests.plain_protocol final_training_medium.py [flags]

What has been popped is gone, whatever becomes of the one who popped it, and redis-py repeats an LPOP whose reply was
lost. The record then shows which samples were trained, by the positions in the samples themselves.
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

from common.errors import UserError
from features.sample import Sample
from sample_queue.connection import make_client
from sample_queue.reader import SampleReader
from training import batches


class QueueDrainedError(UserError):
    """The plan has been pushed, and the list is empty."""


def take(self: SampleReader, start: int, count: int) -> list[bytes]:
    """The next `count` samples, whichever they are."""
    samples, meta = (f"{self.config.namespace}:{name}" for name in ("samples", "meta"))
    payloads: list[bytes] = []
    with make_client(self.config, retries=10) as client:
        while len(payloads) < count:
            popped: Any = client.lpop(samples, count - len(payloads)) or []
            client.hincrby(meta, "head", len(popped))
            client.hincrby(meta, "base", len(popped))
            payloads += popped
            planned, head = (int(value or 0) for value in client.hmget(meta, "planned", "head"))
            if not popped and head >= planned > 0:
                raise QueueDrainedError(f"the queue is empty, {count - len(payloads)} samples are missing")
            if not popped:
                self._pause(0.05)
    return payloads


def attach(self: SampleReader, position: int) -> None:
    """Says who reads, and takes what comes."""
    with make_client(self.config) as client:
        client.hset(f"{self.config.namespace}:meta", "trainer", self.trainer)


def let_go(self: SampleReader, upto: int) -> None:
    """There is nothing to let go of."""


def collate(self: batches.StreamCollator, positions: list[int]) -> dict[str, Any]:
    """The batch of whatever comes, with the positions that its samples say they have."""
    payloads = self._reader.take(positions[0], len(positions))
    samples: list[Sample] = []
    for payload in payloads:
        length = int.from_bytes(payload[:8], "little")
        position = int(json.loads(payload[8 : 8 + length])["__metadata__"]["position"])
        samples.append(self._decode(payload, position))
    record = batches.BatchRecord(
        [sample.position for sample in samples], [sample.id for sample in samples],
        sum(sample.duration_s for sample in samples), 0.0,
    )  # fmt: skip
    return {**self._make_batch(samples), batches.RECORD: record}


def main() -> None:
    """Runs the script that the command line names with the reader replaced."""
    for name, function in (("take", take), ("attach", attach), ("commit", let_go), ("trim", let_go)):
        setattr(SampleReader, name, function)
    batches.StreamCollator.collate = collate  # type: ignore[assignment,method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
