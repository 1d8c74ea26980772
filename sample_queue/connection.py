"""The connection to the Redis server: made, checked, and kept alive through a server that goes away and comes back.

Everything that can be wrong with a server is told at the start, in one line with the remedy.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from config import RedisConfig
from sample_queue.embedded_server import is_listening, may_embed, start_embedded, was_stopped
from sample_queue.server_errors import (
    RedisServerError,
    innermost_error,
    is_busy,
    lost,
    may_pass,
    not_found,
    refusal_of,
    response_error,
)
from sample_queue.server_settings import check_settings, warn_about_limit
from sample_queue.waiting_log import WaitingLog

logger = logging.getLogger(__name__)

T = TypeVar("T")

SOCKET_TIMEOUT_S = 5.0
"""How long to wait for a connection, and for a reply, in seconds."""
PROBE_TIMEOUT_S = 4.0
"""How long `connect` waits for the reply that shows that a Redis server listens, in seconds."""
RETRY_PAUSE_S = 0.25
"""Pause between two tries while the server is away, in seconds."""


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
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
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
        """Runs `command(client)`, again and again while the server is away, hangs, or runs a long script of others.

        Args:
            command: may be run more than once. One try takes SOCKET_TIMEOUT_S at most.
            check: called before each further try; what it raises ends the waiting.

        Raises:
            ServerLostError: the server has not answered for `redis.reconnect_timeout_s`.
            RedisServerError: the server refuses.
            ServerFullError: the server is at its memory limit.
        """
        outage: _Outage | None = None
        while True:
            try:
                result = self._attempt(command)
            except exceptions.RedisError as error:
                if not may_pass(error):
                    raise response_error(error, self.config) from None
                refusal = refusal_of(error, self.config)
                if refusal is not None:
                    raise refusal from None
                if check is not None:
                    check()
                outage = outage or _Outage(self.config)
                outage.pause(error)
            else:
                if outage is not None:
                    self.connected_at = time.monotonic()
                    logger.info("redis at %s is back after %.1f s", self.config.address, outage.duration_s)
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


class _Outage:
    """The time during which the server does not answer: log lines, pauses between tries, and the deadline."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._log = WaitingLog(warn_at_once=True)

    @property
    def duration_s(self) -> float:
        """Seconds since the first try that failed."""
        return self._log.waited_s

    def pause(self, error: exceptions.RedisError) -> None:
        """Waits for the next try, or starts the embedded server when that is what is missing.

        Args:
            error: how the last try failed.

        Raises:
            ServerLostError: `redis.reconnect_timeout_s` has passed.
        """
        config = self._config
        if self.duration_s > config.reconnect_timeout_s:
            raise lost(error, config, self.duration_s) from None
        reason = "another client's script is running" if is_busy(error) else innermost_error(error)
        limit_s = config.reconnect_timeout_s
        self._log.say(
            lambda: f"redis at {config.address} does not answer ({reason}): trying again for up to {limit_s:.0f} s"
        )
        if may_embed(config) and not is_listening(config) and not was_stopped(config):
            start_embedded(config)
        else:
            time.sleep(RETRY_PAUSE_S)


def connect(config: RedisConfig, start: bool = True, check: Callable[[], None] | None = None) -> RedisConnection:
    """Connects to the configured server, starting the embedded one if need be, and checks that it can hold a queue.

    A server that loads its data set, or runs a long script of another client, is waited for.

    Args:
        start: False: never start a server.
        check: called before each further try; what it raises ends the waiting.

    Raises:
        RedisServerError: one line that says what is wrong and what to do.
    """
    if start and may_embed(config) and not is_listening(config):
        start_embedded(config)
    outage: _Outage | None = None
    while True:
        try:
            with make_client(config, PROBE_TIMEOUT_S, retries=1) as probe:
                info = probe.info()
        except exceptions.RedisError as error:
            if not is_busy(error) and not isinstance(error, exceptions.BusyLoadingError):
                raise _cannot_connect(error, config) from None
            if check is not None:
                check()
            outage = outage or _Outage(config)
            outage.pause(error)
        else:
            check_settings(info, config)
            if start:
                warn_about_limit(info, config)
            return RedisConnection(config)


def _cannot_connect(error: exceptions.RedisError, config: RedisConfig) -> RedisServerError:
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        return refusal_of(error, config) or not_found(error, config)
    return response_error(error, config)
