"""Servers and threads of single tests of the queue."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from config import RedisConfig
from tests.conftest import embedded_server


@pytest.fixture
def own_embedded() -> Iterator[Callable[[float], RedisConfig]]:
    """Starts embedded servers with a limit in MB; they end after the test's background threads."""
    with contextlib.ExitStack() as servers:
        yield lambda megabytes: servers.enter_context(embedded_server(megabytes))


@pytest.fixture
def in_background(own_embedded: Callable[[float], RedisConfig]) -> Iterator[Callable[..., threading.Thread]]:
    """Runs a function in a thread; the test fails when it has not ended by itself in the end."""
    threads = []

    def start(function: Callable[..., object], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        threads.append(thread)
        return thread

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a background thread does not end"
