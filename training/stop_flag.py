"""A flag that signals set to stop a run. The trainer and its DataLoader workers look at it between their steps."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawValue
from types import FrameType

from torch.utils.data import get_worker_info

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Whether the run is to stop. Shared with DataLoader workers; has no lock, so that a signal handler may set it."""

    def __init__(self) -> None:
        self._signal_number = RawValue("i", 0)
        self._set = RawValue("b", 0)

    def set(self, signal_number: int = 0) -> None:
        """Sets the flag. Of several signals, the number of the first is kept."""
        if signal_number and not self._signal_number.value:
            self._signal_number.value = signal_number
        self._set.value = 1

    def clear(self) -> None:
        """Unsets the flag."""
        self._set.value = 0

    def is_set(self) -> bool:
        """Whether to stop: the flag is set, or this is a DataLoader worker whose trainer has died."""
        parent = multiprocessing.parent_process() if get_worker_info() else None
        return bool(self._set.value) or (parent is not None and not parent.is_alive())

    @property
    def signal_number(self) -> int:
        """Number of the signal that set the flag, 0 if none did."""
        return int(self._signal_number.value)

    @contextmanager
    def set_by_signals(self) -> Iterator[None]:
        """Inside this block Ctrl-C and SIGTERM set the flag, instead of raising in the middle of an optimizer step."""

        def handle(signal_number: int, frame: FrameType | None) -> None:
            self.set(signal_number)

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_signals_to_the_trainer(worker_id: int) -> None:
    """Sets a DataLoader worker's signal handlers, so that a signal to the whole process group ends it without an error.

    It ignores Ctrl-C, on which the trainer sets the flag. At SIGTERM it exits with code 0: the trainer also ends
    workers that it no longer needs that way, and another exit code would raise in the middle of the trainer's step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
