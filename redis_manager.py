"""The program for the virtual container, the samples in Redis between the producer and the trainer.

    python redis_manager.py start            start the embedded server
    python redis_manager.py status --json    what is in the queue, as one JSON object
    python redis_manager.py clear            drop the queue with its plan
    python redis_manager.py stop             end the embedded server

The same --redis.* flags as for the scripts say which server and which namespace.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from common.command_line import parse, run, with_flag_values
from common.errors import UserError
from config import RedisConfig
from sample_queue.connection import connect
from sample_queue.embedded_server import embedded_pid, is_listening, may_embed, stop_embedded
from sample_queue.protocol import QueueStatus, open_queue
from sample_queue.server_errors import ServerNotFoundError

logger = logging.getLogger(__name__)


@dataclass
class Settings:
    """What to do, and with which server."""

    action: Annotated[Literal["start", "stop", "status", "clear"], tyro.conf.Positional]
    """start: start the embedded server, unless it runs. stop: end it, and all that is queued with it. status: show
    what is in the queue. clear: drop the queue and its plan, so that the namespace can hold another."""
    json: bool = False
    """Print one JSON object instead of words; `--json` alone is enough."""
    redis: RedisConfig = field(default_factory=RedisConfig)


def start(config: RedisConfig) -> dict[str, object]:
    """Starts the embedded server, unless it runs already.

    Raises:
        UserError: the address is not this machine's, or the port is taken by something else.
    """
    config = dataclasses.replace(config, embedded=True)  # asked for by name
    if not may_embed(config):
        raise UserError(
            f"the embedded server runs on this machine only, not at {config.address}: start that server there"
        )
    ran = is_listening(config)
    connect(config).close()
    return {"started": not ran, "address": config.address, "pid": embedded_pid(config)}


def stop(config: RedisConfig) -> dict[str, object]:
    """Ends the embedded server. A server that these scripts did not start is left alone.

    Raises:
        UserError: the server at the address was not started by these scripts.
    """
    if not may_embed(dataclasses.replace(config, embedded=True)):
        raise UserError(f"the server at {config.address} was not started by these scripts: stop it by its own means")
    pid = stop_embedded(config)
    return {"stopped": pid is not None, "address": config.address, "pid": pid}


def status(config: RedisConfig) -> dict[str, object]:
    """What is in the queue, as the fields of `QueueStatus`. Never starts a server."""
    queue = open_queue(_require_server(config), start=False)
    return dataclasses.asdict(queue.status())


def clear(config: RedisConfig) -> dict[str, object]:
    """Drops the queue and its plan. Returns how much of what. Never starts a server."""
    queue = open_queue(_require_server(config), start=False)
    return {"namespace": config.namespace, **queue.clear()}


def describe(action: str, result: dict[str, object]) -> str:
    """The result of an action in words for a terminal."""
    if action == "start":
        done = "started redis" if result["started"] else "redis runs already"
        return f"{done} at {result['address']} (pid {result['pid']})"
    if action == "stop":
        stopped = f"stopped redis at {result['address']} (pid {result['pid']})"
        return stopped if result["stopped"] else f"nothing to stop at {result['address']}"
    if action == "clear":
        if not any(result[name] for name in ("samples", "inflight", "rejected", "plans")):
            return f"namespace {result['namespace']!r} was empty"
        return (
            f"removed from namespace {result['namespace']!r}: {result['samples']} queued samples, "
            f"{result['inflight']} in flight, {result['rejected']} rejected lines, {result['plans']} plan"
        )
    return _table(QueueStatus(**result))  # type: ignore[arg-type]


def _table(status: QueueStatus) -> str:
    megabytes = [f"{size / 2**20:.1f}" for size in (status.used_memory_bytes, status.used_memory_peak_bytes)]
    rows = {
        "namespace": status.namespace,
        "plan": f"{status.planned} samples ({status.fingerprint[:12]})" if status.planned else "none",
        "queued": f"{status.depth} samples (positions {status.head} to {status.tail})",
        "in flight": f"{status.inflight} samples (positions {status.position} to {status.head}), "
        f"{status.inflight_bytes / 2**20:.1f} MB",
        "pushed": f"{status.tail} of {status.planned}",
        "memory": f"{megabytes[0]} MB used, {megabytes[1]} MB at most, limit {status.limit_bytes / 2**20:.1f} MB",
        "rejected": f"{status.rejected} recordings",
        "trainer": _presence(status.trainer_attached, "attached", status.trainer, status.trainer_seen_s),
        "producer": _presence(status.producer_alive, "alive", status.producer, status.producer_seen_s),
        "finished": "yes" if status.finished else "no",
    }
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())


def _presence(is_there: bool, word: str, token: str, seen_s: float | None) -> str:
    """What the table says of a trainer or a producer."""
    seen = "" if seen_s is None else f", last seen {seen_s:.0f} s ago"
    return f"{word if is_there else 'none'}{' (' + token + ')' if token else ''}{seen}"


def _require_server(config: RedisConfig) -> RedisConfig:
    """Returns `config` when something listens there.

    Raises:
        ServerNotFoundError: nothing does.
    """
    if may_embed(config) and not is_listening(config):
        raise ServerNotFoundError(
            f"no redis listens at {config.address}: start one with `python redis_manager.py start`, or by either script"
        )
    return config


def main() -> None:
    """The program behind `python redis_manager.py`."""
    settings = parse(Settings, __doc__ or "", with_flag_values(sys.argv[1:], "json"))
    result = {"start": start, "stop": stop, "status": status, "clear": clear}[settings.action](settings.redis)
    print(json.dumps(result) if settings.json else describe(settings.action, result))


if __name__ == "__main__":
    run(main)
