"""The producer's end of the queue."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from config import RedisConfig
from sample_queue.errors import FencedError, ProducerBusyError, RunFinished, finished_run, foreign_plan
from sample_queue.memory import PIECE_BYTES, allocated, check_payload, headroom
from sample_queue.process_token import has_died_here, process_token
from sample_queue.protocol import PlanCard, QueueStatus, open_queue
from sample_queue.server_errors import ServerFullError
from sample_queue.waiting_log import WaitingLog

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""Shortest time between two heartbeats, in seconds."""
LONGEST_SLEEP_S = 2.0
"""Longest sleep without a heartbeat in between, in seconds."""
ROOM_IS_KNOWN_FOR_S = 1.0
"""How long the room that the server told with a push may be relied on, in seconds."""
LINES_PER_CALL = 200
"""Most rejected lines that one call stores."""
LINE_BYTES = 500
"""Bytes after which a rejected line is cut off."""

TRAINER_SILENT_S = 3600.0
"""A trainer that has not been heard of for so long is not waited for. An evaluation may take most of an hour."""


class ProducerAnnouncement:
    """Tells a trainer that waits for the plan that a producer is at work on it (reading and checking the manifest)."""

    def __init__(self, config: RedisConfig) -> None:
        self._queue = open_queue(config)
        self._beaten_at = float("-inf")
        self.heartbeat()

    def heartbeat(self) -> None:
        """Call it every 2 s or so, or as often as you like: it speaks to the server once a second at most."""
        if time.monotonic() - self._beaten_at >= HEARTBEAT_S:
            self._queue.run("heartbeat", "")
            self._beaten_at = time.monotonic()

    def close(self) -> None:
        """Ends the announcement: a `SampleWriter` sends the heartbeats from now on, or the producer ends."""
        self._queue.say_goodbye("")


def announce_producer(config: RedisConfig) -> ProducerAnnouncement:
    """Announces this process as a producer that has no plan yet. Also a first check of the server, before a long scan.

    Raises:
        RedisServerError: the server cannot be used.
    """
    return ProducerAnnouncement(config)


class SampleWriter:
    """Pushes encoded samples in order, and waits while there is no room.

    Its calls look at no stop flag: in a producer Ctrl-C and SIGTERM raise `common.command_line.Interruption`, which
    ends any wait, also for a server that does not answer.
    """

    def __init__(self, config: RedisConfig, card: PlanCard) -> None:
        self.config = config
        self.card = card
        self.token = process_token()
        self.waiting = False
        """Whether `push` is waiting for room just now."""
        self.waited_s = 0.0
        """Seconds spent waiting so far."""
        self.on_wait: Callable[[], None] = lambda: None
        """Called every 2 s or so while waiting: for progress."""
        self._opened = False
        self._trainer_seen_at: float | None = None
        self._queue = open_queue(config)
        self._room, self._room_at, self._beaten_at = 0, float("-inf"), float("-inf")

    def open(self, position: int = 0) -> int:
        """Takes the producer's end of the queue; makes the stream at `position` if there is none.

        A producer that died on this machine is taken over at once, one elsewhere after 15 s of silence.

        Returns:
            The tail: the position to go on from.

        Raises:
            ForeignPlanError: the namespace holds another plan.
            FinishedRunError: the run in the namespace is finished.
            ProducerBusyError: another live producer holds the namespace.
        """
        return self._open(position, take_over=False)

    def _open(self, position: int, take_over: bool) -> int:
        card = self.card
        arguments = (position, card.fingerprint, card.planned, card.to_json(), self.token, int(take_over))
        state, *rest = self._queue.run("open", *arguments)
        if state == b"busy":
            other = rest[0].decode()
            if not take_over and has_died_here(other):
                logger.info("taking over from producer %s, which has died", other)
                return self._open(position, take_over=True)
            raise ProducerBusyError(
                f"producer {other} already feeds namespace {self.config.namespace!r}: leave the work to it, or stop it "
                "first, or choose another --redis.namespace"
            )
        if state == b"foreign":
            raise foreign_plan(self.config, rest[0].decode(), card.fingerprint)
        if state == b"finished":
            if self._opened:  # the queue was wiped, and then its run finished, since the last call
                raise RunFinished("the trainer is done")
            raise finished_run(self.config)
        self._opened = True
        self._beaten_at = time.monotonic()
        return int(rest[0])

    def push(self, position: int, payloads: Sequence[bytes], rejected: Sequence[str] = ()) -> int:
        """Appends samples; blocks while there is no room, however long that takes.

        Args:
            position: position of `payloads[0]`: the tail that this producer knows.
            payloads: encoded samples at consecutive positions.
            rejected: recordings found unusable, a line each; a line that is known is not stored again.

        Returns:
            The tail afterwards: go on from there. It is `position + len(payloads)`, unless the trainer went elsewhere.

        Raises:
            RunFinished: the trainer is done.
            FencedError: another producer has taken over.
            CapacityError: a payload that can never fit.
        """
        lines = [line.encode("utf-8", "replace")[:LINE_BYTES] for line in rejected]
        tail, end = position, position + len(payloads)
        while lines[LINES_PER_CALL:] or (lines and not payloads):
            lines = self._store_lines(tail, lines)
        while position <= tail < end:
            piece = _first_piece(payloads[tail - position :])
            moved = self._push_piece(tail, piece, lines)
            if moved <= tail:  # the trainer went back, or the queue was wiped
                return moved
            tail, lines = moved, []
        return tail

    def heartbeat(self) -> None:
        """Tells that this producer is alive. Call it every 2 s or so; it speaks to the server once a second at most.

        Raises:
            RunFinished: the trainer is done.
            FencedError: another producer has taken over.
        """
        if time.monotonic() - self._beaten_at >= HEARTBEAT_S:
            self._beat()

    def _beat(self) -> int | None:
        """A heartbeat. Returns the tail, None when the queue has been lost."""
        state, *rest = self._check(self._queue.run("heartbeat", self.token))
        self._beaten_at = time.monotonic()
        if state == b"lost":
            return None
        tail, trainer_age_ms = rest
        self._note_trainer(trainer_age_ms)
        return int(tail)

    def wait_at_end(self, position: int) -> int:
        """Waits, with all samples pushed, as long as a trainer may need some of them again.

        Args:
            position: the tail that this producer knows: the end of the plan.

        Returns:
            The new tail, to go on from: the trainer went back, or the queue was wiped. `position` itself when this
            producer has not known of any trainer for `TRAINER_SILENT_S`, or never: it may end.

        Raises:
            RunFinished: the trainer is done.
            FencedError: another producer has taken over.
        """
        log = WaitingLog()
        while True:
            tail = self._beat()
            if tail is None:
                tail = self._open(position, take_over=False)
            if tail != position:
                return tail
            if self._trainer_silent_s() > TRAINER_SILENT_S:
                return position
            log.say(lambda: "all samples are pushed; staying until the trainer is done, in case it needs some again")
            self._sleep(self.config.sleep_seconds)

    def _note_trainer(self, age_ms: int) -> None:
        """Keeps the time at which a trainer was last heard of, because a wipe of the queue loses it.

        Args:
            age_ms: how long ago that was, by the queue, in milliseconds; -1: the queue knows of no trainer.
        """
        if age_ms >= 0:
            self._trainer_seen_at = time.monotonic() - age_ms / 1000

    def _trainer_silent_s(self) -> float:
        """Seconds since this producer last knew of a trainer; infinite: never."""
        return math.inf if self._trainer_seen_at is None else time.monotonic() - self._trainer_seen_at

    def status(self) -> QueueStatus:
        """The queue at this moment."""
        return self._queue.status()

    def close(self) -> None:
        """The producer leaves: another may take its place at once."""
        self._queue.say_goodbye(self.token)

    def _push_piece(self, tail: int, piece: list[bytes], lines: list[bytes]) -> int:
        """Pushes what one call may carry, as soon as there is room. Returns the tail afterwards."""
        log = WaitingLog()
        try:
            while True:
                if self._has_room(piece):
                    state, *rest = self._push_once(tail, piece, lines)
                    if state in (b"ok", b"moved"):
                        return int(rest[0])
                else:
                    found = self._beat()
                    state = b"lost" if found is None else b"full"
                    if found is not None and found != tail:
                        return found
                if state == b"lost":
                    return self._open(tail, take_over=False)
                self.waiting = True
                log.say(self._describe_wait)
                self._sleep(self.config.sleep_seconds)
        finally:
            self.waiting = False

    def _push_once(self, tail: int, piece: Sequence[bytes], lines: Sequence[bytes]) -> list[Any]:
        try:
            answer = self._queue.run(
                "push", self.token, tail, self.config.max_memory_bytes, len(lines), *lines, *piece
            )  # fmt: skip
        except ServerFullError:  # the server's own limit: as full as our own
            self._room_at = float("-inf")
            return [b"full"]
        self._check(answer)
        self._beaten_at = time.monotonic()
        if len(answer) == 4:
            self._room, self._room_at = int(answer[2]), time.monotonic()
            self._note_trainer(answer[3])
        return answer

    def _store_lines(self, tail: int, lines: list[bytes]) -> list[bytes]:
        """Stores the first of the rejected lines without samples; returns the others."""
        state = self._push_once(tail, [], lines[:LINES_PER_CALL])[0]
        if state == b"lost":
            self._open(tail, take_over=False)
            return lines
        return lines[LINES_PER_CALL:]

    def _has_room(self, piece: Sequence[bytes]) -> bool:
        """Whether `piece` may be sent: what is sent takes memory in the server before the script can refuse it.

        The room that the last push told is relied on while it is twice the need: only pushes take room for good.
        """
        cost = sum(allocated(len(payload)) for payload in piece)
        largest = max(len(payload) for payload in piece)
        if time.monotonic() - self._room_at < ROOM_IS_KNOWN_FOR_S and self._room >= 2 * cost:
            return True
        info = self._queue.connection.call(lambda client: client.info("memory"))
        limit = min(self.config.max_memory_bytes, int(info["maxmemory"]) or self.config.max_memory_bytes)
        check_payload(limit, largest)
        return int(info["used_memory"]) + cost <= limit - headroom(largest)

    def _check(self, answer: list[Any]) -> list[Any]:
        if answer[0] == b"finished":
            raise RunFinished("the trainer is done")
        if answer[0] == b"fenced":
            raise FencedError(
                f"another producer ({answer[1].decode()}) has taken over namespace {self.config.namespace!r}: this one "
                "stops; run one producer at a time"
            )
        return answer

    def _describe_wait(self) -> str:
        status = self.status()
        trainer = "a trainer is attached" if status.trainer_attached else "no trainer is attached"
        return (
            f"waiting for room: {status.used_memory_bytes / 2**20:.0f} of {status.limit_bytes / 2**20:.0f} MB used, "
            f"{status.depth} samples queued, {status.inflight} in flight, {trainer}"
        )

    def _sleep(self, duration_s: float) -> None:
        """Sleeps in slices, with heartbeats in between."""
        started = time.monotonic()
        while (left_s := started + duration_s - time.monotonic()) > 0:
            time.sleep(min(left_s, LONGEST_SLEEP_S))
            self.heartbeat()
            self.on_wait()
        self.waited_s += time.monotonic() - started


def _first_piece(payloads: Sequence[bytes]) -> list[bytes]:
    """As many payloads as one call may carry: up to PIECE_BYTES, at least one."""
    piece, size = [payloads[0]], len(payloads[0])
    for payload in payloads[1:]:
        size += len(payload)
        if size > PIECE_BYTES:
            break
        piece.append(payload)
    return piece
