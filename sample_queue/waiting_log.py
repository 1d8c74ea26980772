"""Log lines about a long wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class WaitingLog:
    """Log lines about one wait: after 5 s, then at growing intervals."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._next_s = 5.0

    @property
    def waited_s(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self.started

    def say(self, message: Callable[[], str]) -> None:
        """Logs `message()` and the time waited, if it is time again."""
        if self.waited_s >= self._next_s:
            self._next_s = min(self._next_s * 2, self._next_s + 300)
            logger.info("%s (for %.0f s so far)", message(), self.waited_s)
