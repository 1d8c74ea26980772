"""The trainer's end of the queue."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from config import RedisConfig
from sample_queue.connection import RedisConnection
from sample_queue.errors import FencedError, ProducerGoneError, StopRequested, finished_run, foreign_plan
from sample_queue.protocol import ALIVE_S, PlanCard, QueueStatus, SampleQueue, open_queue
from sample_queue.waiting_log import WaitingLog

logger = logging.getLogger(__name__)

SHORTEST_SLICE_S, LONGEST_SLICE_S = 0.05, 0.5
BUSY_SLICE_S, FORCE_AFTER_S = 0.005, 2.0

FAREWELL_S = 5.0
"""How long a finished trainer waits for the producer to leave, in seconds."""


class Value(Protocol):
    """A number shared between processes, such as `multiprocessing.Value("q")`."""

    value: int


class Event(Protocol):
    """A flag shared between processes, such as `multiprocessing.Event()`."""

    def is_set(self) -> bool:
        """Whether the flag is up."""


def trainer_token() -> str:
    """A new trainer's token. All ranks and workers of one trainer share one."""
    return f"trainer-{secrets.token_hex(8)}"


class SampleReader:
    """Takes samples by position, and lets go of them. Picklable; each process connects by itself when it first must."""

    def __init__(self, config: RedisConfig, trainer: str, trained: Value, stop: Event) -> None:
        """
        Args:
            config: where the queue is.
            trainer: token of the whole trainer, one for all its processes.
            trained: `.value` is the position up to which everything has been trained.
            stop: `.is_set()` says that a wait is to end with `StopRequested`.
        """
        self.config = config
        self.trainer = trainer
        self.card: PlanCard | None = None
        """The plan's card, once `wait_for_plan` or `attach` has seen it."""
        self.waited_s = 0.0
        """Seconds spent waiting for samples so far, in this process."""
        self._trained, self._stop = trained, stop
        self._queue: SampleQueue | None = None

    def wait_for_plan(self, stopped: Callable[[], bool] | None = None) -> PlanCard:
        """Waits until a producer has made the plan.

        Args:
            stopped: True ends the wait as `stop` does.

        Raises:
            ProducerGoneError: no producer for `redis.producer_timeout_s`.
            StopRequested: told to stop.
            FinishedRunError: the run in the namespace is finished.
            RedisServerError: the server cannot be used.
        """
        queue = self._connected()
        log, alive = WaitingLog(), _Liveness(self.config, queue)
        while True:
            status = self.status()
            if status.finished:
                raise finished_run(self.config)
            card = queue.card() if status.planned else None
            if card is not None:
                self.card = card
                return card
            if stopped is not None and stopped():
                raise StopRequested("told to stop while waiting for the plan")
            alive.check(status.producer_seen_s, progress=None, needed="the plan")
            log.say(partial(_describe_wait, "the plan", 0, status.producer_seen_s))
            self._pause(LONGEST_SLICE_S)

    def attach(self, position: int) -> None:
        """Makes this trainer the one that the queue serves, from `position` on; a former one is fenced off.

        Raises:
            ForeignPlanError: the queue holds another plan than the card says.
            FinishedRunError: the run in the namespace is finished.
        """
        if self.card is None:
            self.wait_for_plan()
        self._attach(position, take_over=True)

    def take(self, start: int, count: int) -> list[bytes]:
        """Payloads of the positions `start` … `start + count - 1`; blocks until they are all there.

        After a wipe, or when the queue is past `start`, it makes the producer go back, and waits.

        Raises:
            FencedError: another trainer has taken over.
            ProducerGoneError: no producer for `redis.producer_timeout_s` while samples are missing.
            StopRequested: told to stop while waiting.
        """
        payloads: list[bytes] = []
        log: WaitingLog | None = None
        alive = _Liveness(self.config, self._connected())
        slice_s, forced = SHORTEST_SLICE_S, 0
        while len(payloads) < count:
            first = start + len(payloads)
            wanted = (first, start + count - first, self._trained.value, self.config.max_memory_bytes, forced)
            state, *rest = self._run("take", self.trainer, *wanted)
            if state == b"ok":
                payloads += rest
                continue
            if state in (b"lost", b"behind"):
                self._check_stop()  # a worker that outlives its trainer must not make the queue anew
                self._attach(first if state == b"behind" else min(self._trained.value, first), take_over=False)
                continue
            log = log or WaitingLog()
            if state == b"busy":
                forced = int(log.waited_s > FORCE_AFTER_S)
                self._pause(BUSY_SLICE_S)
                continue
            tail, age_ms = rest
            seen_s = age_ms / 1000 if age_ms >= 0 else None
            needed = f"samples up to position {start + count - 1}"
            alive.check(seen_s, tail, needed)
            log.say(partial(_describe_wait, needed, tail, seen_s))
            self._pause(slice_s)
            slice_s = min(slice_s * 1.2, LONGEST_SLICE_S)
        if log is not None:
            self.waited_s += log.waited_s
        return payloads

    def commit(self, upto: int) -> None:
        """Drops the in-flight samples before `upto`: a complete checkpoint holds them.

        Raises:
            FencedError: another trainer has taken over.
        """
        self._let_go(upto, "commit")

    def trim(self, upto: int) -> None:
        """Drops the oldest in-flight samples before `upto`, but only as far as in-flight takes over half of the limit.

        One cheap round trip, for after each optimizer step.

        Args:
            upto: position up to which everything has been trained.

        Raises:
            FencedError: another trainer has taken over.
        """
        self._let_go(upto, "trim")

    def status(self) -> QueueStatus:
        """The queue at this moment."""
        return self._connected().status()

    def finish(self) -> None:
        """Says that the run is finished: a producer that still waits ends, and the namespace takes no further run.

        Gives the producer a few seconds to hear of it: if the server were lost before, it would fill an empty queue.

        Raises:
            FencedError: another trainer has taken over.
        """
        while self._run("finish", self.trainer)[0] == b"lost":
            self._attach(self._trained.value, take_over=False)
        deadline = time.monotonic() + FAREWELL_S
        while self.status().producer_alive and time.monotonic() < deadline:
            time.sleep(SHORTEST_SLICE_S)

    def close(self) -> None:
        """Closes this process's connection."""
        if self._queue is not None:
            self._queue.connection.close()

    def _connected(self) -> SampleQueue:
        if self._queue is None and self.card is not None:  # a DataLoader worker: the trainer has checked the server
            self._queue = SampleQueue(RedisConnection(self.config), self.config.namespace)
        if self._queue is None:
            self._queue = open_queue(self.config)
        return self._queue

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_queue": None}

    def _run(self, script: str, *arguments: str | int) -> list[Any]:
        answer = self._connected().run(script, *arguments, check=self._check_stop)
        if answer[0] == b"fenced":
            raise FencedError(
                f"another trainer ({answer[1].decode()}) has taken over namespace {self.config.namespace!r}: this one "
                "stops; run one trainer at a time, or give each a --redis.namespace"
            )
        return answer

    def _attach(self, position: int, take_over: bool) -> None:
        card = self.card
        if card is None:
            raise RuntimeError("attach() comes before take(), commit() and finish()")
        arguments = (position, int(take_over), card.fingerprint, card.planned, card.to_json())
        state, *rest = self._run("attach", self.trainer, *arguments)
        if state == b"foreign":
            raise foreign_plan(self.config, rest[0].decode(), card.fingerprint)
        if state == b"finished":
            raise finished_run(self.config)
        if not take_over:
            logger.warning("the queue was empty or elsewhere: it starts again at position %d", position)

    def _let_go(self, upto: int, how: str) -> None:
        state, *rest = self._run("commit", self.trainer, upto, how, self.config.max_memory_bytes)
        while state == b"ok" and rest[0]:
            state, *rest = self._run("commit", self.trainer, upto, how, self.config.max_memory_bytes)

    def _pause(self, seconds: float) -> None:
        self._check_stop()
        time.sleep(seconds)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise StopRequested("told to stop while waiting")


class _Liveness:
    """How long the producer has been away during one wait."""

    def __init__(self, config: RedisConfig, queue: SampleQueue) -> None:
        self._config, self._queue = config, queue
        self._alive_at = time.monotonic()
        self._progress: int | None = None

    def check(self, seen_s: float | None, progress: int | None, needed: str) -> None:
        """Notes whether the producer lives.

        Args:
            seen_s: seconds since it was last heard of; None: never.
            progress: the tail; a tail that moves is a sign of life.
            needed: what is waited for, for the error.

        Raises:
            ProducerGoneError: away for `redis.producer_timeout_s`.
        """
        now = time.monotonic()
        if (seen_s is not None and seen_s < ALIVE_S) or progress != self._progress:
            self._alive_at, self._progress = now, progress
        away_s = now - max(self._alive_at, self._queue.connection.connected_at)
        if away_s > self._config.producer_timeout_s:
            raise ProducerGoneError(
                f"waited for {needed}, but no producer has been seen for {away_s:.0f} s (redis.producer_timeout_s): "
                "start prepro_add2radis.py again, then this script"
            )


def _describe_wait(needed: str, tail: int, seen_s: float | None) -> str:
    if seen_s is None:
        producer = "no producer has been seen: start prepro_add2radis.py"
    elif seen_s < ALIVE_S:
        producer = "the producer is alive"
    else:
        producer = f"the producer was last seen {seen_s:.0f} s ago: start prepro_add2radis.py again"
    return f"waiting for {needed}; the queue ends at {tail}, {producer}"
