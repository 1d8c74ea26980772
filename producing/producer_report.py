"""What the producer tells the person who runs it: progress while it works, and the numbers to check at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tqdm.contrib.logging import logging_redirect_tqdm

from common.progress_bar import progress_bar
from producing.sample_worker import Chunk
from sample_queue.protocol import QueueStatus

STATUS_S = 1.0
"""Least time between two looks at the queue, in seconds."""
MIB = 2**20


class ProgressLine:
    """A line with the samples pushed, their rate, and the state of the container."""

    def __init__(self, planned: int, position: int, status: Callable[[], QueueStatus]) -> None:
        """
        Args:
            planned: samples in the plan.
            position: where this session begins.
            status: looks at the queue.
        """
        self._status, self._shown_at = status, 0.0
        self._bar = progress_bar(planned, "sample", initial=position)
        self._log_above = logging_redirect_tqdm()

    def __enter__(self) -> ProgressLine:
        self._log_above.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._log_above.__exit__(kind, error, trace)

    def show(self, position: int, waiting: bool = False) -> None:
        """Draws the line, if it is time to.

        Args:
            position: the tail of the queue.
            waiting: whether the producer waits for room.
        """
        if time.monotonic() - self._shown_at >= STATUS_S:
            self._shown_at = time.monotonic()
            status = self._status()
            used, limit = status.used_memory_bytes / MIB, status.limit_bytes / MIB
            self._bar.set_postfix_str(
                f"queue {status.depth}, memory {used:.0f}/{limit:.0f} MB, rejected {status.rejected}"
                + (", waiting for room" if waiting else ""),
                refresh=False,
            )
        if position < self._bar.n:  # the trainer went back
            self._bar.reset(self._bar.total)
        self._bar.update(position - self._bar.n)


class Tally:
    """Counts what one session pushed."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._samples = 0
        self._audio_s = 0.0
        self._augmentations: Counter[str] = Counter()
        self._corpora: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()

    def add(self, chunk: Chunk) -> None:
        """Counts a chunk."""
        self._samples += len(chunk.payloads)
        self._audio_s += chunk.audio_s
        self._augmentations.update(chunk.augmentations)
        self._corpora.update(chunk.corpora)
        self._notes.update(chunk.notes)

    def report(self, position: int, planned: int, waited_s: float, rejected: int, report: Path) -> str:
        """The closing report.

        Args:
            position: the tail of the queue.
            planned: samples in the plan.
            waited_s: time spent waiting, for room or for the trainer, in seconds.
            rejected: recordings that can't be used.
            report: the file that lists them.
        """
        took_s = time.monotonic() - self._started_at
        lines = [
            f"pushed {self._samples} samples ({self._audio_s / 3600:.2f} h of audio) in {took_s:.0f} s, "
            f"{waited_s:.0f} s of them waiting; the queue stands at {position} of {planned}",
            *(f"  {count:>9} {name}" for name, count in self._augmentations.most_common()),
            *(f"  {count:>9} of corpus {name}" for name, count in self._corpora.most_common()),
            *(f"  {count:>9} {note}" for note, count in self._notes.most_common()),
            f"rejected recordings: {rejected}" + (f", see {report}" if rejected else ""),
        ]
        return "\n".join(lines)
