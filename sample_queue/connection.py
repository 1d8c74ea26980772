"""The connection to the Redis server: made, checked, and kept alive through a server that goes away and comes back.

Everything that can be wrong with a server is told at the start, in one line with the remedy.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from config import RedisConfig
from sample_queue.embedded_server import embedded_pid, is_listening, may_embed, start_embedded, was_stopped
from sample_queue.server_errors import (
    RedisServerError,
    ServerLostError,
    ServerSettingsError,
    innermost_error,
    not_found,
    refusal_of,
    response_error,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

SOCKET_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 4.0
OLDEST_VERSION = (6, 2)
RETRY_PAUSE_S = 0.25


def make_client(config: RedisConfig, timeout_s: float | None = None, retries: int = 0) -> redis.Redis:
    """A redis-py client for the configured address. Connects at its first command.

    User and password come from `redis.url`, else from REDIS_USERNAME and REDIS_PASSWORD.

    Args:
        timeout_s: how long to wait for a reply; None: SOCKET_TIMEOUT_S.
        retries: how often redis-py itself repeats a command whose connection broke. Not at all, by default:
            `RedisConnection` repeats it, and asks between two tries whether to stop.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s or SOCKET_TIMEOUT_S,
        "socket_connect_timeout": 5.0,
        "retry": Retry(ExponentialBackoff(base=0.01, cap=0.5), retries),
        "protocol": 2,
        "driver_info": None,  # no CLIENT SETINFO, which a narrow ACL would forbid
    }
    user, password = os.environ.get("REDIS_USERNAME"), os.environ.get("REDIS_PASSWORD")
    if password:
        options |= {"username": user or None, "password": password}
    if not config.url:
        return redis.Redis(host=config.host, port=config.port, **options)
    try:
        client = redis.Redis.from_url(config.url, **options)  # what the URL says goes before the options
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)  # does not connect yet
        return client
    except (ValueError, TypeError) as error:
        # The error's text could quote the URL, and with it the password: hence no chaining either.
        reason = type(error).__name__
    raise RedisServerError(
        f"redis.url ({config.address}) has an option or a port that redis-py does not take ({reason})"
    )


class RedisConnection:
    """One process's connection to the server, which outlives the server.

    A command that meets a dead server is repeated until it succeeds: the embedded server is started again, a foreign
    one is waited for. So only commands that may be repeated belong here. Picklable; each process makes its own client.
    """

    def __init__(self, config: RedisConfig) -> None:
        self.config = config
        self.connected_at = time.monotonic()
        """When the server last came back, on this process's monotonic clock, in seconds."""
        self._client: redis.Redis | None = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]

    @property
    def client(self) -> redis.Redis:
        """This process's redis-py client."""
        if self._client is None or self._pid != os.getpid():
            self._client, self._pid = make_client(self.config), os.getpid()
        return self._client

    def call(self, command: Callable[[redis.Redis], T], check: Callable[[], None] | None = None) -> T:
        """Runs `command(client)`, again and again while the server is away.

        Args:
            command: may be run more than once.
            check: called between two tries; what it raises ends the waiting.

        Raises:
            ServerLostError: the server stayed away for `redis.reconnect_timeout_s`.
            RedisServerError: the server refuses.
            ServerFullError: the server is at its memory limit.
        """
        lost_at: float | None = None
        while True:
            try:
                result = self._attempt(command)
            except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError) as error:
                refusal = refusal_of(error, self.config)
                if refusal is not None:
                    raise refusal from None
                lost_at = time.monotonic() if lost_at is None else lost_at
                self._endure(error, lost_at)
                if check is not None:
                    check()
                continue
            except exceptions.RedisError as error:
                if str(error).startswith("BUSY"):  # a long script of somebody else
                    time.sleep(RETRY_PAUSE_S)
                    continue
                raise response_error(error, self.config) from None
            if lost_at is not None:
                self.connected_at = time.monotonic()
                logger.info("redis at %s is back after %.1f s", self.config.address, self.connected_at - lost_at)
            return result

    def close(self) -> None:
        """Closes this process's sockets."""
        if self._client is not None and self._pid == os.getpid():
            self._client.close()
        self._client = None

    def _attempt(self, command: Callable[[redis.Redis], T]) -> T:
        completed = False
        try:
            result = command(self.client)
            completed = True
            return result
        finally:
            if not completed:  # also when a signal handler raised: a late reply must not answer the next command
                self.close()

    def _endure(self, error: Exception, lost_at: float) -> None:
        """One pause between two tries, with a log line at the first."""
        config, waited_s = self.config, time.monotonic() - lost_at
        if waited_s > config.reconnect_timeout_s:
            raise ServerLostError(
                f"redis at {config.address} did not answer for {waited_s:.0f} s (redis.reconnect_timeout_s): start the "
                "server again, then this script; it goes on where the last checkpoint stands"
            ) from None
        if waited_s < RETRY_PAUSE_S / 2:
            logger.warning(
                "redis at %s does not answer (%s): trying again for up to %.0f s",
                config.address,
                innermost_error(error),
                config.reconnect_timeout_s,
            )
        if may_embed(config) and not is_listening(config) and not was_stopped(config):
            start_embedded(config)
            return
        time.sleep(RETRY_PAUSE_S)


def connect(config: RedisConfig, start: bool = True) -> RedisConnection:
    """Connects to the configured server, starting the embedded one if need be, and checks that it can hold a queue.

    Args:
        start: False: never start a server.

    Raises:
        RedisServerError: one line that says what is wrong and what to do.
    """
    if start and may_embed(config) and not is_listening(config):
        start_embedded(config)
    deadline = time.monotonic() + config.reconnect_timeout_s
    while True:
        try:
            with make_client(config, PROBE_TIMEOUT_S, retries=1) as probe:
                _check_settings(probe.info(), config, warn=start)
            return RedisConnection(config)
        except exceptions.BusyLoadingError:
            if time.monotonic() > deadline:
                raise ServerLostError(
                    f"redis at {config.address} is still loading its data set: try again later"
                ) from None
            logger.info("redis at %s is loading its data set: waiting", config.address)
            time.sleep(1)
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            raise (refusal_of(error, config) or not_found(error, config)) from None
        except exceptions.RedisError as error:
            raise response_error(error, config) from None


def _check_settings(info: Mapping[str, Any], config: RedisConfig, warn: bool) -> None:
    """Refuses a server that would evict samples, refuse writes, or miss a command.

    Raises:
        ServerSettingsError: with the line to change.
    """
    where = f"redis at {config.address}"
    version = tuple(int(number) for number in re.findall(r"\d+", str(info["redis_version"]))[:2])
    if version < OLDEST_VERSION:
        raise ServerSettingsError(
            f"{where} is version {info['redis_version']}: expected 6.2 or newer; update the server"
        )
    if info.get("redis_mode") == "cluster":
        raise ServerSettingsError(f"{where} is part of a cluster: expected a single server; name one with --redis.url")
    if info.get("role") != "master":
        raise ServerSettingsError(f"{where} is a read-only replica: name its master with --redis.url")
    policy, limit = info["maxmemory_policy"], int(info["maxmemory"])
    if policy != "noeviction":
        raise ServerSettingsError(
            f"{where} may throw samples away (maxmemory-policy {policy}): set `maxmemory-policy noeviction` in its "
            "redis.conf, or run `redis-cli config set maxmemory-policy noeviction`"
        )
    if not warn:
        return
    if limit == 0:
        logger.warning(
            "%s has no memory limit of its own: the scripts keep to redis.max_memory_gb (%g), but `maxmemory %d` in "
            "its redis.conf would be a backstop",
            where,
            config.max_memory_gb,
            config.max_memory_bytes,
        )
    elif limit < config.max_memory_bytes:
        ours = may_embed(config) and embedded_pid(config) is not None
        logger.warning(
            "%s has a limit of %d bytes (maxmemory), below redis.max_memory_gb (%g): the lower one holds%s",
            where,
            limit,
            config.max_memory_gb,
            "; to change it, run `python redis_manager.py stop`, then start again" if ours else "",
        )
