"""Progress bars that look alike, on a terminal and in a log file."""

from __future__ import annotations

import sys
import threading

from tqdm import tqdm


def progress_bar(total: int, unit: str, description: str | None = None, initial: int = 0) -> tqdm:
    """A bar on stderr.

    Args:
        total: units when all is done.
        unit: what is counted.
        description: stands before the bar.
        initial: units that were done before.
    """
    tqdm.set_lock(threading.RLock())  # its own is for several processes, and is reported as leaked at their end
    # On a terminal the line is drawn over; in a file every drawing is a line of its own, so it is drawn seldom.
    every_s = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, unit=unit, desc=description, initial=initial, mininterval=every_s, file=sys.stderr)
