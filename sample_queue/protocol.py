"""What both ends of the queue share: its keys, its scripts (lua/), the plan card and the status."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import redis

from config import RedisConfig
from sample_queue.connection import RedisConnection, connect, make_client
from sample_queue.errors import REMEDIES, ForeignPlanError
from sample_queue.memory import PIECE_BYTES
from sample_queue.server_errors import RedisServerError, forbidden

ALIVE_S = 15.0
"""A producer counts as alive for so long after it was last heard of, in seconds."""
LUA = Path(__file__).parent / "lua"

GOODBYE_S = 2.0
"""How long a producer that leaves waits for the server's answer, in seconds."""


@dataclass(frozen=True)
class PlanCard:
    """What a trainer must know of the producer's plan. It lies in `meta`; both ends can put it back after a wipe."""

    fingerprint: str
    """Identity of the plan: same fingerprint, same samples."""
    planned: int
    """Samples in the whole plan."""
    samples_per_epoch: int
    num_mel_bins: int
    window_frames: int
    """Frames of the model's whole window."""
    feature_dtype: str
    """float16 or float32."""
    tokenizer: str
    """Digest of the tokenizer that made the labels."""
    max_sample_bytes: int
    """Most bytes that the payload of one sample can have."""
    corpora: list[str] = field(default_factory=list)
    """Names of the corpora of a mixture, with which the ids of its samples begin (name/id)."""

    def to_json(self) -> str:
        """The card as stored."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> PlanCard:
        """Reads what `to_json` wrote.

        Raises:
            ForeignPlanError: it is not a card of this version.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ForeignPlanError(
                f"the plan in Redis was written by another version of the scripts: {REMEDIES}"
            ) from error


@dataclass(frozen=True)
class QueueStatus:
    """The queue at one moment."""

    namespace: str
    depth: int
    """Samples that wait to be taken."""
    inflight: int
    """Samples that were taken and that no checkpoint holds yet."""
    inflight_bytes: int
    position: int
    """Position of the first in-flight sample: what a trainer may go back to without the producer."""
    head: int
    """Position of the first queued sample."""
    tail: int
    """Position of the sample that is pushed next."""
    planned: int
    """Samples in the whole plan; 0: there is no plan."""
    fingerprint: str
    used_memory_bytes: int
    used_memory_peak_bytes: int
    """Highest used_memory since the server started."""
    limit_bytes: int
    """`redis.max_memory_gb`, or the server's own maxmemory when that is lower."""
    rejected: int
    """Recordings that the producer reported as unusable."""
    trainer_attached: bool
    trainer: str
    """The attached trainer's token; empty: none."""
    trainer_seen_s: float | None
    """Seconds since the trainer last spoke to the queue."""
    producer_alive: bool
    producer: str
    """The producer's token (host:pid:…); empty: none, or it has no plan yet."""
    producer_seen_s: float | None
    """Seconds since the producer was last heard of."""
    finished: bool
    """The trainer has said that it is done."""


class SampleQueue:
    """The scripts of lua/ on one namespace. Picklable; every script may be repeated when its reply was lost."""

    def __init__(self, connection: RedisConnection, namespace: str) -> None:
        self.connection = connection
        self.namespace = namespace
        self.keys = [f"{namespace}:{name}" for name in ("samples", "inflight", "meta", "rejected")]

    def run(
        self,
        script: str,
        *arguments: str | bytes | int,
        keys: Sequence[str] = (),
        check: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Runs lua/`script`.lua; each file says what it takes and returns.

        Args:
            script: the file's name without `.lua`.
            arguments: its ARGV.
            keys: further KEYS after the queue's four.
            check: called before each further try while the server does not answer; what it raises ends the waiting.
        """
        source, sha = script_source(script)
        all_keys = [*self.keys, *keys]

        def command(client: redis.Redis) -> Any:
            try:
                return client.evalsha(sha, len(all_keys), *all_keys, *arguments)
            except redis.exceptions.NoScriptError:
                client.script_load(source)
                return client.evalsha(sha, len(all_keys), *all_keys, *arguments)

        return list(self.connection.call(command, check))

    def say_goodbye(self, token: str) -> None:
        """Tells the server that a producer leaves, and closes the connection.

        Only saves another producer and the trainer a wait of ALIVE_S, so it is tried once, for GOODBYE_S, and may fail.

        Args:
            token: the producer's; empty before it has a plan.
        """
        self.connection.close()
        client = make_client(self.connection.config, timeout_s=GOODBYE_S, retries=0)
        with contextlib.suppress(redis.exceptions.RedisError), client:
            client.evalsha(script_source("heartbeat")[1], len(self.keys), *self.keys, token, 1)

    def status(self, check: Callable[[], None] | None = None) -> QueueStatus:
        """Everything that is known of the queue, at one moment.

        Args:
            check: as for `run`.
        """
        depth, inflight, now, producer_age, used, peak, maxmemory, pairs = self.run("status", check=check)
        meta = {key.decode(): value.decode() for key, value in zip(pairs[::2], pairs[1::2], strict=True)}
        head = int(meta.get("head", 0))
        limit = self.connection.config.max_memory_bytes
        return QueueStatus(
            namespace=self.namespace,
            depth=depth,
            inflight=inflight,
            inflight_bytes=int(meta.get("inflight_bytes", 0)),
            position=int(meta.get("base", 0)),
            head=head,
            tail=head + depth,
            planned=int(meta.get("planned", 0)),
            fingerprint=meta.get("fingerprint", ""),
            used_memory_bytes=used,
            used_memory_peak_bytes=peak,
            limit_bytes=min(limit, maxmemory or limit),
            rejected=int(meta.get("rejected", 0)),
            trainer_attached="trainer" in meta,
            trainer=meta.get("trainer", ""),
            trainer_seen_s=(now - int(meta["trainer_seen"])) / 1000 if "trainer_seen" in meta else None,
            producer_alive=0 <= producer_age < ALIVE_S * 1000,
            producer=meta.get("producer", ""),
            producer_seen_s=producer_age / 1000 if producer_age >= 0 else None,
            finished="finished" in meta,
        )

    def card(self, check: Callable[[], None] | None = None) -> PlanCard | None:
        """The card of the plan in the queue; None while there is no plan.

        Args:
            check: as for `run`.
        """
        pairs = self.run("status", check=check)[7]
        meta = dict(zip(pairs[::2], pairs[1::2], strict=True))
        return PlanCard.from_json(meta[b"card"]) if b"head" in meta else None

    def clear(self) -> dict[str, int]:
        """Removes the queue with its plan.

        Returns:
            How many it removed of `samples`, `inflight`, `rejected` and `plans`.
        """
        return dict(zip(("samples", "inflight", "rejected", "plans"), self.run("clear"), strict=True))


def open_queue(config: RedisConfig, start: bool = True, check: Callable[[], None] | None = None) -> SampleQueue:
    """Connects to the configured server and checks that it permits everything that the queue needs.

    Args:
        start: False: never start an embedded server.
        check: as for `SampleQueue.run`.

    Raises:
        RedisServerError: one line that says what is wrong and what to do.
    """
    queue = SampleQueue(connect(config, start, check), config.namespace)
    answer = queue.run("check", keys=[f"{config.namespace}:probe"], check=check)
    verdict = [word.decode(errors="replace") for word in answer]
    if verdict and verdict[0] == "forbidden":
        raise forbidden(f"the command {verdict[1]}", config)
    if verdict and "WRONGTYPE" in verdict[2]:
        raise RedisServerError(
            f"redis at {config.address} holds other data under {config.namespace}:*: choose another --redis.namespace"
        )
    if verdict:
        raise RedisServerError(f"redis at {config.address} refuses {verdict[1]}: {verdict[2]}")
    return queue


@cache
def script_source(script: str) -> tuple[str, str]:
    """A script's source with the common part before it, and the sha1 by which the server knows it."""
    parts = [f"local PIECE_BYTES, ALIVE_MS = {PIECE_BYTES}, {int(ALIVE_S * 1000)}"]
    parts += [(LUA / f"{name}.lua").read_text(encoding="utf-8") for name in ("common", script)]
    source = "\n".join(parts)
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()  # Redis names scripts by sha1
