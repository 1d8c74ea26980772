"""What a trainer knows of the producer while it waits for it."""

from __future__ import annotations

import time

from config import RedisConfig
from sample_queue.connection import RedisConnection
from sample_queue.errors import ProducerGoneError
from sample_queue.protocol import ALIVE_S
from sample_queue.waiting_log import WaitingLog


class ProducerWatch:
    """One wait for what a producer makes: its log lines, and its end when there is no producer."""

    def __init__(self, config: RedisConfig, connection: RedisConnection, needed: str) -> None:
        """
        Args:
            config: says after how long to give up.
            connection: knows since when the server has been there; before, no producer could be seen.
            needed: what is waited for, for messages.
        """
        self._config, self._connection, self._needed = config, connection, needed
        self._alive_at = time.monotonic()
        self._tail: int | None = None
        self._log = WaitingLog()

    def note(self, tail: int, seen_s: float | None) -> None:
        """Takes note of what the queue tells about the producer, and logs a line if one is due.

        Args:
            tail: where the queue ends; a tail that has moved is a sign of life.
            seen_s: seconds since the producer was last heard of; None: never.

        Raises:
            ProducerGoneError: there has been no sign of life for `redis.producer_timeout_s`.
        """
        now = time.monotonic()
        if (seen_s is not None and seen_s < ALIVE_S) or tail != self._tail:
            self._alive_at, self._tail = now, tail
        away_s = now - max(self._alive_at, self._connection.connected_at)
        if away_s > self._config.producer_timeout_s:
            raise ProducerGoneError(
                f"waited for {self._needed}, but no producer has been seen for {away_s:.0f} s "
                "(redis.producer_timeout_s): start prepro_add2radis.py again, then this script"
            )
        self._log.say(lambda: f"waiting for {self._needed}; the queue ends at {tail}, {_describe_producer(seen_s)}")


def _describe_producer(seen_s: float | None) -> str:
    if seen_s is None:
        return "no producer has been seen: start prepro_add2radis.py"
    if seen_s < ALIVE_S:
        return "the producer is alive"
    return f"the producer was last seen {seen_s:.0f} s ago: start prepro_add2radis.py again"
