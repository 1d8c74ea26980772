"""What can be wrong with a Redis server, each in one line with the remedy."""

from __future__ import annotations

import re
import ssl

from redis import exceptions

from common.errors import UserError
from config import RedisConfig


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


def is_busy(error: exceptions.RedisError) -> bool:
    """Whether the server runs a script of another client that takes longer than its `lua-time-limit`."""
    return str(error).startswith("BUSY ")


def may_pass(error: exceptions.RedisError) -> bool:
    """Whether the server may answer later: it is away, hangs, loads its data set, or is busy with a script."""
    return isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError) or is_busy(error)


def lost(error: exceptions.RedisError, config: RedisConfig, waited_s: float) -> ServerLostError:
    """The error for a server that has been waited for in vain.

    Args:
        error: how the last try failed.
        config: names the server.
        waited_s: how long it has been waited for, in seconds.
    """
    remedy = "start the server again"
    if is_busy(error):
        remedy = "it runs another client's script; end that with `redis-cli script kill`"
    elif isinstance(error, exceptions.BusyLoadingError):
        remedy = "it is loading its data set; wait until it has"
    return ServerLostError(
        f"redis at {config.address} did not answer for {waited_s:.0f} s (redis.reconnect_timeout_s): {remedy}, then "
        "start this script again; it goes on where the last checkpoint stands"
    )


def refusal_of(error: Exception, config: RedisConfig) -> RedisServerError | None:
    """The error to show when trying again would not help, else None."""
    where, cause = f"redis at {config.address}", innermost_error(error)
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


def not_found(error: Exception, config: RedisConfig) -> RedisServerError:
    """The error for a start at which nothing answered as Redis would."""
    cause = innermost_error(error)
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


def response_error(error: exceptions.RedisError, config: RedisConfig) -> RedisServerError:
    """What the server refused, in words that hold no secret."""
    text = str(error)
    if isinstance(error, exceptions.InvalidResponse):
        return not_found(error, config)
    if isinstance(error, exceptions.NoPermissionError) or "NOPERM" in text or "ermissions" in text:
        return forbidden(_forbidden_thing(text), config)
    if "NOAUTH" in text or isinstance(error, exceptions.AuthenticationError):
        return refusal_of(exceptions.AuthenticationError(text), config) or ServerAccessError(text)
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


def innermost_error(error: BaseException) -> BaseException:
    """The innermost error: redis-py wraps what the socket said."""
    while error.__cause__ is not None or error.__context__ is not None:
        inner = error.__cause__ or error.__context__
        assert inner is not None
        error = inner
    return error
