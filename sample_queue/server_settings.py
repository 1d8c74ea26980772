"""What the settings of a Redis server must be so that it can hold a queue."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from config import RedisConfig
from sample_queue.embedded_server import embedded_pid, may_embed
from sample_queue.server_errors import ServerSettingsError

logger = logging.getLogger(__name__)

OLDEST_VERSION = (6, 2)


def check_settings(info: Mapping[str, Any], config: RedisConfig) -> None:
    """Refuses a server that would evict samples, refuse writes, or miss a command.

    Args:
        info: what the server answers to INFO.
        config: names the server.

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
    policy = info["maxmemory_policy"]
    if policy != "noeviction":
        raise ServerSettingsError(
            f"{where} may throw samples away (maxmemory-policy {policy}): set `maxmemory-policy noeviction` in its "
            "redis.conf, or run `redis-cli config set maxmemory-policy noeviction`"
        )


def warn_about_limit(info: Mapping[str, Any], config: RedisConfig) -> None:
    """Warns when the server has no memory limit, or a lower one than is configured.

    Args:
        info: what the server answers to INFO.
        config: names the server and the configured limit.
    """
    where, limit = f"redis at {config.address}", int(info["maxmemory"])
    if limit == 0:
        logger.warning(
            "%s has no memory limit of its own: the scripts keep to redis.max_memory_gb (%g), but `maxmemory %d` in "
            "its redis.conf would be a backstop",
            where, config.max_memory_gb, config.max_memory_bytes,
        )  # fmt: skip
    elif limit < config.max_memory_bytes:
        is_embedded = may_embed(config) and embedded_pid(config) is not None
        logger.warning(
            "%s has a limit of %d bytes (maxmemory), below redis.max_memory_gb (%g): the lower one holds%s",
            where, limit, config.max_memory_gb,
            "; to change it, run `python redis_manager.py stop`, then start again" if is_embedded else "",
        )  # fmt: skip
