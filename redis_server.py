"""The connection to the Redis server: made, checked, and kept alive through a server that goes away and comes back.

Everything that can be wrong with a server is told at the start, in one line with the remedy.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from config import RedisConfig, UserError
from embedded_redis import embedded_pid, is_listening, may_embed, start_embedded, was_stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")

SOCKET_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 4.0
OLDEST_VERSION = (6, 2)
RETRY_PAUSE_S = 0.25


class RedisServerError(UserError):
    """The Redis server cannot be used as it is."""


class ServerNotFoundError(RedisServerError):
    """Nothing that speaks Redis is where the configuration says."""


class ServerAccessError(RedisServerError):
    """The server does not let us in, or forbids a command: password, ACL, TLS."""


class ServerSettingsError(RedisServerError):
    """The server's own settings would lose samples or stop the queue."""


class ServerFullError(RedisServerError):
    """The server is at its memory limit and takes nothing more for now."""


class ServerLostError(RedisServerError):
    """A server that was there went away and did not come back in `redis.reconnect_timeout_s`."""


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
                refusal = _refusal(error, self.config)
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
                raise _response_error(error, self.config) from None
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
                _cause(error),
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
            raise (_refusal(error, config) or _not_found(error, config)) from None
        except exceptions.RedisError as error:
            raise _response_error(error, config) from None


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


def _refusal(error: Exception, config: RedisConfig) -> RedisServerError | None:
    """The error to show when trying again would not help, else None."""
    where, cause = f"redis at {config.address}", _cause(error)
    text = str(error)
    if isinstance(error, exceptions.AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        if "without any password configured" in text:
            return ServerAccessError(
                f"{where} has no password, but one was given: remove it from redis.url or REDIS_PASSWORD"
            )
        return ServerAccessError(
            f"{where} does not accept the user and password: set them in redis.url, or in REDIS_USERNAME and "
            "REDIS_PASSWORD"
        )
    if isinstance(cause, ssl.SSLError) or "SSL" in text:
        reason = cause.reason if isinstance(cause, ssl.SSLError) and cause.reason else "the certificate or the protocol"
        return ServerAccessError(
            f"TLS with {where} failed ({reason}): check that the port speaks TLS, and name its authority with "
            "?ssl_ca_certs=/path/to/ca.crt in redis.url"
        )
    return None


def _not_found(error: Exception, config: RedisConfig) -> RedisServerError:
    """The error for a start at which nothing answered as Redis would."""
    cause = _cause(error)
    where = config.address
    if isinstance(cause, exceptions.TimeoutError | TimeoutError):
        tls = ", or it does not speak TLS: then use redis://" if config.url.startswith("rediss:") else ""
        return ServerNotFoundError(
            f"{where} accepts connections but does not answer as Redis would: another program may use the port (choose "
            f"another --redis.port){tls}"
        )
    if isinstance(cause, ConnectionError | FileNotFoundError) and not isinstance(cause, ConnectionResetError):
        start = "set --redis.embedded True, or start" if not config.embedded else "start"
        return ServerNotFoundError(f"no redis listens at {where}: {start} the server, or name another with --redis.url")
    if isinstance(cause, OSError) and not isinstance(cause, ConnectionResetError):
        return ServerNotFoundError(
            f"cannot reach redis at {where} ({cause.strerror or cause}): check --redis.host or url"
        )
    return ServerNotFoundError(
        f"what listens at {where} does not speak plain Redis: another program may use the port (choose another "
        "--redis.port), or the server wants TLS (rediss:// in redis.url)"
    )


def _response_error(error: exceptions.RedisError, config: RedisConfig) -> RedisServerError:
    """What the server refused, in words that hold no secret."""
    text = str(error)
    if isinstance(error, exceptions.InvalidResponse):
        return _not_found(error, config)
    if isinstance(error, exceptions.NoPermissionError) or "NOPERM" in text or "ermissions" in text:
        return forbidden(_forbidden_thing(text), config)
    if "NOAUTH" in text or isinstance(error, exceptions.AuthenticationError):
        return _refusal(exceptions.AuthenticationError(text), config) or ServerAccessError(text)
    if "OOM" in text or "used memory > 'maxmemory'" in text:
        return ServerFullError(f"redis at {config.address} is at its memory limit")
    if "WRONGTYPE" in text:
        return ServerSettingsError(
            f"redis at {config.address} holds other data under {config.namespace}:*: choose another --redis.namespace"
        )
    return ServerSettingsError(f"redis at {config.address} refused a command: {text}")


def forbidden(thing: str, config: RedisConfig) -> ServerAccessError:
    """The error for an ACL that forbids a command or a key."""
    return ServerAccessError(
        f"redis at {config.address} forbids {thing} to this user: widen the user's ACL (the README has the line)"
    )


def _forbidden_thing(text: str) -> str:
    command = re.search(r"run the '([^']+)' command", text)
    if command:
        return f"the command {command[1].upper()}"
    return "the queue's keys" if "key" in text else "a command"


def _cause(error: BaseException) -> BaseException:
    """The innermost error: redis-py wraps what the socket said."""
    while error.__cause__ is not None or error.__context__ is not None:
        inner = error.__cause__ or error.__context__
        assert inner is not None
        error = inner
    return error
