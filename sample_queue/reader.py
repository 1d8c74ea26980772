"""The trainer's end of the queue."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any, Protocol

from config import RedisConfig
from sample_queue.connection import RedisConnection
from sample_queue.errors import FencedError, StopRequested, finished_run, foreign_plan
from sample_queue.producer_watch import ProducerWatch
from sample_queue.protocol import PlanCard, QueueStatus, SampleQueue, open_queue

logger = logging.getLogger(__name__)

SHORTEST_SLICE_S, LONGEST_SLICE_S = 0.05, 0.5
"""Pauses between two looks for samples, the first and the longest, in seconds."""
MEMORY_SLICE_S = 0.005
"""Pause before the next take when other processes' replies fill the memory of the server, in seconds."""
TAKE_ALONE_AFTER_S = 2.0
"""How long memory may be short before samples are taken one by one although it is, in seconds."""
FAREWELL_S = 5.0
"""How long a finished trainer waits for the producer to end, in seconds."""


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
    """Takes samples by position, and drops them when they are trained. Picklable; each process connects by itself.

    While a method waits for samples, or for a server that does not answer, it looks at `stop` and raises
    `StopRequested` when that is set. A try that hangs takes `connection.SOCKET_TIMEOUT_S` at most.
    """

    def __init__(self, config: RedisConfig, trainer: str, trained: Value, stop: Event) -> None:
        """
        Args:
            config: where the queue is.
            trainer: token of the whole trainer, one for all its processes.
            trained: `.value` is the position up to which everything has been trained.
            stop: `.is_set()` says that any wait is to end with `StopRequested`.
        """
        self.config = config
        self.trainer = trainer
        self.card: PlanCard | None = None
        """The plan's card, once `wait_for_plan` or `attach` has seen it."""
        self.waited_s = 0.0
        """Seconds spent waiting for samples so far, in this process."""
        self._trained, self._stop = trained, stop
        self._queue: SampleQueue | None = None

    def wait_for_plan(self) -> PlanCard:
        """Waits until a producer has made the plan.

        Raises:
            ProducerGoneError: no producer for `redis.producer_timeout_s`.
            StopRequested: told to stop.
            FinishedRunError: the run in the namespace is finished.
            RedisServerError: the server cannot be used.
        """
        queue = self._connected()
        watch = ProducerWatch(self.config, queue.connection, "the plan")
        while True:
            status = self.status()
            if status.finished:
                raise finished_run(self.config)
            card = queue.card(self._check_stop) if status.planned else None
            if card is not None:
                self.card = card
                return card
            watch.note(status.tail, status.producer_seen_s)
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
        end, pauses = start + count, _Pauses()
        watch = ProducerWatch(self.config, self._connected().connection, f"samples up to position {end - 1}")
        while len(payloads) < count:
            first = start + len(payloads)
            state, rest = self._take_once(first, end, pauses.take_alone)
            if state == b"ok":
                payloads += rest
            elif state == b"busy":
                self._pause(pauses.for_memory())
            elif state == b"wait":
                tail, age_ms = rest
                watch.note(tail, age_ms / 1000 if age_ms >= 0 else None)
                self._pause(pauses.for_samples())
            else:
                self._attach_again(first, is_behind=state == b"behind")
        self.waited_s += pauses.total_s
        return payloads

    def commit(self, upto: int) -> None:
        """Drops the in-flight samples before `upto`: a complete checkpoint holds them.

        Raises:
            FencedError: another trainer has taken over.
        """
        self._drop(upto, "commit")

    def trim(self, upto: int) -> None:
        """Drops the oldest in-flight samples before `upto`, but only as far as in-flight takes over half of the limit.

        One cheap round trip, for after each optimizer step.

        Args:
            upto: position up to which everything has been trained.

        Raises:
            FencedError: another trainer has taken over.
        """
        self._drop(upto, "trim")

    def status(self) -> QueueStatus:
        """The queue at this moment.

        Raises:
            StopRequested: told to stop while the server did not answer.
        """
        return self._connected().status(self._check_stop)

    def finish(self) -> None:
        """Says that the run is finished: a producer that still waits ends, and the namespace takes no further run.

        Then waits up to FAREWELL_S until the producer has ended: if the server were lost before it knows, the producer
        would fill a new, empty queue.

        Raises:
            FencedError: another trainer has taken over.
            StopRequested: told to stop while waiting.
        """
        while self._run("finish", self.trainer)[0] == b"lost":
            self._attach(self._trained.value, take_over=False)
        deadline = time.monotonic() + FAREWELL_S
        while self.status().producer_alive and time.monotonic() < deadline:
            self._pause(SHORTEST_SLICE_S)

    def _connected(self) -> SampleQueue:
        if self._queue is None and self.card is not None:  # a DataLoader worker: the trainer has checked the server
            self._queue = SampleQueue(RedisConnection(self.config), self.config.namespace)
        if self._queue is None:
            self._queue = open_queue(self.config, check=self._check_stop)
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

    def _take_once(self, first: int, end: int, alone: bool) -> tuple[bytes, list[Any]]:
        """One call for the positions `first` … `end - 1`.

        Args:
            alone: take a single sample, even when memory is short.

        Returns:
            The state that lua/take.lua tells, and what comes with it.
        """
        arguments = (first, end - first, self._trained.value, self.config.max_memory_bytes, int(alone))
        state, *rest = self._run("take", self.trainer, *arguments)
        return state, rest

    def _attach_again(self, first: int, is_behind: bool) -> None:
        """Makes the producer go back, when the queue was wiped or is past position `first`."""
        self._check_stop()  # a DataLoader worker whose trainer has ended must not make the queue anew
        self._attach(first if is_behind else min(self._trained.value, first), take_over=False)

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

    def _drop(self, upto: int, how: str) -> None:
        """Runs lua/commit.lua until nothing is left to drop.

        Args:
            upto: the first position that stays.
            how: commit or trim.
        """
        is_more = True
        while is_more:
            state, *rest = self._run("commit", self.trainer, upto, how, self.config.max_memory_bytes)
            is_more = state == b"ok" and rest[0] > 0

    def _pause(self, duration_s: float) -> None:
        self._check_stop()
        time.sleep(duration_s)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise StopRequested("told to stop while waiting")


class _Pauses:
    """The pauses of one take."""

    def __init__(self) -> None:
        self.take_alone = False
        """Whether memory has been short for so long that samples are taken one by one."""
        self._slice_s = SHORTEST_SLICE_S
        self._started_at: float | None = None
        self._short_at: float | None = None

    @property
    def total_s(self) -> float:
        """Seconds since the first pause; 0 without one."""
        return 0.0 if self._started_at is None else time.monotonic() - self._started_at

    def for_memory(self) -> float:
        """The next pause, in seconds, when memory is short."""
        now = time.monotonic()
        self._started_at, self._short_at = self._started_at or now, self._short_at or now
        self.take_alone = now - self._short_at > TAKE_ALONE_AFTER_S
        return MEMORY_SLICE_S

    def for_samples(self) -> float:
        """The next pause, in seconds, when samples are missing: longer each time."""
        self._started_at = self._started_at or time.monotonic()
        slice_s, self._slice_s = self._slice_s, min(self._slice_s * 1.2, LONGEST_SLICE_S)
        return slice_s
