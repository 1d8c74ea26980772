"""Log lines about a long wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

FIRST_AFTER_S = 5.0
"""After how long a wait is first told, in seconds."""


class WaitingLog:
    """Log lines about one wait, at growing intervals: 5 s at first, 5 minutes in the end."""

    def __init__(self, warn_at_once: bool = False) -> None:
        """
        Args:
            warn_at_once: whether there is also a line at the beginning, as a warning.
        """
        self.started = time.monotonic()
        self._next_s = 0.0 if warn_at_once else FIRST_AFTER_S

    @property
    def waited_s(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self.started

    def say(self, message: Callable[[], str]) -> None:
        """Logs `message()` and the time waited, if a line is due."""
        if self.waited_s < self._next_s:
            return
        if self._next_s == 0:
            logger.warning("%s", message())
        else:
            logger.info("%s (for %.0f s so far)", message(), self.waited_s)
        self._next_s = max(FIRST_AFTER_S, min(self._next_s * 2, self._next_s + 300))
