"""Redis never takes more than the limit, and whoever needs samples gets them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

import pytest
import redis

from config import GIB, RedisConfig
from sample_queue.errors import CapacityError
from sample_queue.memory import PIECE_BYTES, allocated, check_capacity, headroom
from sample_queue.protocol import SampleQueue, open_queue, script_source
from sample_queue.reader import SampleReader
from sample_queue.writer import SampleWriter
from tests.conftest import embedded_server
from tests.queues import CARD, feed, make_writer, payload, payloads, take_stripes
from tests.runs import wait_until

SPAWN = multiprocessing.get_context("spawn")
LIMITS = {32: 50_000, 64: 100_000, 200: 480_000}
"""Limits in MB, and the size of the payloads that fill them: the larger, the sooner."""
USABLE = {32: 0.75, 64: 0.8, 200: 0.85}
"""What share of each limit the queued payloads take at least when it is full."""


@contextmanager
def running(target: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    """A process that must have ended by itself, without an error, when the block is left."""
    process = SPAWN.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def make_reader(config: RedisConfig, trained: Any) -> SampleReader:
    reader = SampleReader(config, "trainer-1", trained, threading.Event())
    reader.attach(0)
    return reader


def wait_until_full(queue: SampleQueue) -> None:
    """Until what is queued has stood still for a second: the producer waits for room."""
    depth, since = -1, time.monotonic()

    def stands_still() -> bool:
        nonlocal depth, since
        found = queue.status().depth
        if found != depth:
            depth, since = found, time.monotonic()
        return depth > 0 and time.monotonic() - since > 1.0

    wait_until(stands_still)


def check_then_push(config: RedisConfig, size: int, writers: int = 8) -> None:
    """The control: what one would write first. Each writer looks whether there is room, then pushes."""
    barrier = threading.Barrier(writers)

    def write() -> None:
        chunk = payloads(0, 8, size)
        with redis.Redis(port=config.port) as client:
            try:
                while client.info("memory")["used_memory"] + 8 * size <= config.max_memory_bytes:
                    barrier.wait(10)
                    client.rpush("naive", *chunk)
            except threading.BrokenBarrierError:
                return
            finally:
                barrier.abort()

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("megabytes", LIMITS)
def test_the_limit_holds_without_a_trainer_and_with_one_that_never_saves(megabytes: int) -> None:
    """The trainer takes three times what the limit holds, commits nothing, and is never kept waiting for ever."""
    size = LIMITS[megabytes]
    with embedded_server(megabytes) as config:
        limit, queue = config.max_memory_bytes, open_queue(config)
        with running(feed, config, size):
            wait_until_full(queue)
            full = queue.status()
            assert full.depth * size > USABLE[megabytes] * limit
            assert 0.75 * limit < full.used_memory_bytes <= full.used_memory_peak_bytes <= full.limit_bytes == limit
            trained = RawValue("q", 0)
            reader = make_reader(config, trained)
            most_in_flight, batch = 0, 16
            for start in range(0, 3 * limit // size, batch):
                assert reader.take(start, batch) == payloads(start, start + batch, size)
                most_in_flight = max(most_in_flight, queue.status().inflight_bytes)
                trained.value = start + batch
                reader.trim(start + batch)
                most_in_flight = max(most_in_flight, queue.status().inflight_bytes)
            status = queue.status()
            reader.finish()
        assert 0.4 * limit < most_in_flight <= limit / 2
        assert status.used_memory_peak_bytes <= limit

        with redis.Redis(port=config.port) as client:
            client.flushall()
            client.config_set("maxmemory", 0)
            check_then_push(config, size)
            assert client.info("memory")["used_memory_peak"] > limit, "the control must exceed it"


@pytest.mark.parametrize("megabytes", LIMITS)
def test_several_processes_that_take_at_once_stay_below_the_limit(megabytes: int) -> None:
    """Eight ranks ask for a megabyte each, all at the same moment: more than pushes leave free."""
    size, ranks = LIMITS[megabytes], 8
    batch = PIECE_BYTES // size
    steps = 2 * megabytes * 2**20 // (size * ranks * batch)
    with embedded_server(megabytes) as config:
        trained, done, barrier = RawValue("q", 0), RawArray("q", ranks), SPAWN.Barrier(ranks)
        queue = open_queue(config)
        with running(feed, config, size):
            wait_until_full(queue)
            reader = make_reader(config, trained)
            common = (config, trained, done, barrier)
            takers = [
                SPAWN.Process(target=take_stripes, args=(*common, rank, batch, steps, size), daemon=True)
                for rank in range(ranks)
            ]
            for taker in takers:
                taker.start()
            while any(taker.is_alive() for taker in takers):
                trained.value = min(done) * ranks * batch
                reader.trim(trained.value)
                time.sleep(0.01)
            assert [taker.exitcode for taker in takers] == [0] * ranks
            status = queue.status()
            reader.finish()
        assert status.head == steps * ranks * batch
        assert status.used_memory_peak_bytes <= status.limit_bytes


def test_a_payload_larger_than_all_before_is_not_sent_to_a_full_queue() -> None:
    """What is sent takes memory before the script can refuse it: here more than pushes of small ones leave free."""
    with embedded_server(64) as config:
        limit, writer = config.max_memory_bytes, SampleWriter(config, CARD)
        tail = writer.open()
        while (found := writer._push_once(tail, payloads(tail, tail + 16, 40_000), []))[0] == b"ok":
            tail = int(found[1])
        assert found[0] == b"full"
        large = payload(tail, 4_500_000)
        pushing = threading.Thread(target=writer.push, args=(tail, [large]))
        pushing.start()
        wait_until(lambda: writer.waited_s > 0.5)
        status = open_queue(config).status()
        assert status.tail == tail
        assert 0.9 * limit < status.used_memory_bytes < status.used_memory_peak_bytes <= limit
        trained = RawValue("q", 0)
        reader = make_reader(config, trained)
        for start in range(0, tail, 16):
            reader.take(start, 16)
            trained.value = start + 16
            reader.commit(trained.value)
        assert reader.take(tail, 1) == [large]
        pushing.join(20)
        assert not pushing.is_alive()
        assert open_queue(config).status().used_memory_peak_bytes <= limit


def test_the_arithmetic_of_memory_is_the_same_in_lua_and_in_python(redis_config: RedisConfig) -> None:
    source = script_source("status")[0]
    common = source[: source.index("-- Everything that is known")]
    sizes = [0, 1, 40, 960, 1023, 1024, 53_000, 65_472, 65_473, 480_000, 2**20 - 64, 2**20, 3_000_001]
    with redis.Redis(port=redis_config.port) as client:
        for size in sizes:
            script = f"{common}\nreturn {{allocated({size}), headroom({size})}}"
            assert client.eval(script, 4, *"abcd") == [allocated(size), headroom(size)]


def test_a_large_element_never_takes_more_memory_than_counted(redis_config: RedisConfig) -> None:
    with redis.Redis(port=redis_config.port) as client:
        for size in (9_000, 53_000, 85_000, 132_000, 480_000, 1_500_000):
            before = client.info("memory")["used_memory"]
            for _ in range(8):
                client.rpush(f"list-{size}", payload(0, size))
            time.sleep(0.01)
            grown = client.memory_usage(f"list-{size}", samples=0)
            assert grown is not None
            assert grown <= 8 * allocated(size) + 1024, size
            assert client.info("memory")["used_memory"] > before


def test_a_limit_that_is_too_low_is_refused_with_one_that_is_enough(redis_config: RedisConfig) -> None:
    with pytest.raises(CapacityError) as failure:
        check_capacity(int(0.03 * GIB), 500_000, 64)
    enough = float(str(failure.value).split("--redis.max_memory_gb ")[1].split()[0])
    check_capacity(int(enough * GIB), 500_000, 64)
    with pytest.raises(CapacityError):
        check_capacity(int(0.8 * enough * GIB), 500_000, 64)
    tiny = dataclasses.replace(redis_config, max_memory_gb=0.004)
    with pytest.raises(CapacityError, match="cannot hold a sample of 400000 bytes"):
        make_writer(tiny).push(0, payloads(0, 1, 400_000))
