"""The queue loses nothing, doubles nothing, keeps to its memory, and tells each end what the other does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from config import GIB, RedisConfig
from sample_queue.connection import connect
from sample_queue.embedded_server import embedded_pid
from sample_queue.errors import (
    CapacityError,
    FencedError,
    FinishedRunError,
    ForeignPlanError,
    ProducerBusyError,
    ProducerGoneError,
    RunFinished,
    StopRequested,
)
from sample_queue.memory import allocated, check_capacity, headroom
from sample_queue.protocol import SampleQueue, _source, open_queue
from sample_queue.reader import SampleReader
from sample_queue.writer import SampleWriter, announce_producer
from tests.conftest import embedded_server
from tests.queues import CARD, payload, payloads, produce
from tests.servers import LossyProxy

ROOT = Path(__file__).parents[2]
OwnEmbedded = Callable[[float], RedisConfig]


class Trainer:
    """A reader with what it shares between processes."""

    def __init__(self, config: RedisConfig, token: str = "trainer-1", attach: int | None = 0) -> None:
        self.trained = SimpleNamespace(value=attach or 0)
        self.stop = threading.Event()
        self.reader = SampleReader(config, token, self.trained, self.stop)
        if attach is not None:
            self.reader.attach(attach)

    def reader_of_a_rank(self) -> SampleReader:
        """Another process's reader of the same trainer."""
        reader = SampleReader(self.reader.config, self.reader.trainer, self.trained, self.stop)
        reader.card = self.reader.card
        return reader

    def train(self, start: int, stop: int) -> list[bytes]:
        """Takes, trains and trims one batch."""
        batch = self.reader.take(start, stop - start)
        self.trained.value = stop
        self.reader.trim(stop)
        return batch


def make_writer(config: RedisConfig, position: int = 0) -> SampleWriter:
    writer = SampleWriter(config, CARD)
    writer.open(position)
    return writer


@pytest.fixture
def own_embedded() -> Iterator[OwnEmbedded]:
    """Starts embedded servers with a limit in MB; they end after the test's background threads."""
    with contextlib.ExitStack() as servers:
        yield lambda megabytes: servers.enter_context(embedded_server(megabytes))


@pytest.fixture
def in_background(own_embedded: OwnEmbedded) -> Iterator[Callable[..., threading.Thread]]:
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


# --- first in, first out ---


def test_samples_come_out_in_the_order_in_which_they_went_in(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    assert writer.push(0, payloads(0, 50)) == 50
    trainer = Trainer(redis_config)
    assert trainer.reader.take(0, 20) + trainer.reader.take(20, 30) == payloads(0, 50)


def test_what_is_too_large_for_one_call_goes_in_several(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    assert writer.push(0, [*payloads(0, 7, 400_000), payload(7, 3_000_000)]) == 8
    taken = Trainer(redis_config).reader.take(0, 8)
    assert taken == [*payloads(0, 7, 400_000), payload(7, 3_000_000)]


def test_a_take_blocks_until_the_samples_are_there(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    trainer = Trainer(redis_config)
    threading.Timer(0.3, lambda: writer.push(0, payloads(0, 4))).start()
    assert trainer.reader.take(0, 4) == payloads(0, 4)
    assert 0.2 < trainer.reader.waited_s < 5


def test_ranks_take_their_own_positions_in_any_order(redis_config: RedisConfig) -> None:
    make_writer(redis_config).push(0, payloads(0, 64))
    trainer = Trainer(redis_config)
    worker: SampleReader = trainer.reader
    assert worker.take(40, 8) == payloads(40, 48)
    assert worker.take(0, 8) == payloads(0, 8)
    assert worker.take(8, 32) == payloads(8, 40)


def test_positions_are_exact_in_long_runs(redis_config: RedisConfig) -> None:
    far = 2**52 + 1
    writer = make_writer(redis_config, far)
    assert writer.push(far, payloads(0, 3)) == far + 3
    assert Trainer(redis_config, attach=far).reader.take(far + 1, 2) == payloads(1, 3)


def test_a_commit_drops_what_a_checkpoint_holds_and_a_resume_reads_the_rest_again(redis_config: RedisConfig) -> None:
    make_writer(redis_config).push(0, payloads(0, 40))
    first = Trainer(redis_config)
    first.reader.take(0, 30)
    first.reader.commit(20)
    assert (first.reader.status().position, first.reader.status().inflight) == (20, 10)
    second = Trainer(redis_config, "trainer-2", attach=20)
    assert second.reader.take(20, 20) == payloads(20, 40)


@pytest.mark.parametrize(("taken", "upto"), [(3000, 2990), (3000, 10), (3000, 1500), (3000, 3000)])
def test_a_commit_of_any_share_keeps_the_count_of_bytes(redis_config: RedisConfig, taken: int, upto: int) -> None:
    make_writer(redis_config).push(0, [payload(p, 20 + p % 300) for p in range(taken)])
    trainer = Trainer(redis_config)
    for start in range(0, taken, 500):
        trainer.reader.take(start, 500)
    trainer.reader.commit(upto)
    status = trainer.reader.status()
    assert (status.position, status.inflight) == (upto, taken - upto)
    assert status.inflight_bytes == sum(allocated(20 + p % 300) for p in range(upto, taken))


def test_a_trainer_behind_the_queue_makes_the_producer_go_back(
    redis_config: RedisConfig, in_background: Callable[..., threading.Thread]
) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 40))
    first = Trainer(redis_config)
    first.train(0, 30)
    first.reader.commit(30)
    in_background(produce, writer, 40, 60)
    second = Trainer(redis_config, "trainer-2", attach=8)  # its checkpoint is older than the queue
    assert second.reader.take(8, 52) == payloads(8, 60)
    second.reader.finish()


def test_rejected_recordings_are_listed_once(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 2), rejected=["row 3: unreadable", "row 9: too long"])
    writer.push(2, payloads(2, 4), rejected=["row 3: unreadable"])
    writer.push(4, [], rejected=[f"row {row}: empty" for row in range(100, 600)])
    assert writer.status().rejected == 502
    with redis.Redis(port=redis_config.port) as client:
        assert client.lrange("whisper:rejected", 0, 1) == [b"row 3: unreadable", b"row 9: too long"]


def test_two_namespaces_on_one_server_do_not_meet(redis_config: RedisConfig) -> None:
    other = dataclasses.replace(redis_config, namespace="other")
    make_writer(redis_config).push(0, payloads(0, 3))
    writer = SampleWriter(other, dataclasses.replace(CARD, fingerprint="plan-b"))
    assert writer.open() == 0
    assert writer.status().depth == 0


# --- replies that are lost ---

KINDS = ["open", "push", "take", "commit", "attach", "finish", "status", "heartbeat"]


@pytest.mark.parametrize("before", [False, True], ids=["reply lost", "command lost"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_connection_loses_nothing_and_doubles_nothing(lossy_proxy: LossyProxy, kind: str, before: bool) -> None:
    config = lossy_proxy.config
    direct = dataclasses.replace(config, port=lossy_proxy.target.port)
    writer = SampleWriter(config, CARD)
    for script in KINDS:  # known to the server, so that the sha in the command is what the proxy sees
        writer._queue.connection.call(lambda client, script=script: client.script_load(_source(script)[0]))  # type: ignore[misc]
    lossy_proxy.lose(_source(kind)[1], before)
    writer.open()
    tail = 0
    while tail < 48:
        tail = writer.push(tail, payloads(tail, tail + 16))
    writer.heartbeat()
    time.sleep(0)
    writer._beaten_at = float("-inf")
    writer.heartbeat()
    trainer = Trainer(config)
    taken = [sample for start in range(0, 48, 8) for sample in trainer.train(start, start + 8)]
    trainer.reader.commit(40)
    status = trainer.reader.status()
    trainer.reader.finish()
    assert taken == payloads(0, 48)
    assert (status.position, status.head, status.tail) == (40, 48, 48)
    assert lossy_proxy.lost == 1
    assert open_queue(direct).status().finished


def test_plain_redis_commands_lose_and_double_samples_where_the_scripts_do_not(lossy_proxy: LossyProxy) -> None:
    plain = redis.Redis(port=lossy_proxy.config.port)  # retries by itself, as every redis-py client does
    lossy_proxy.lose("RPUSH")
    plain.rpush("plain", *payloads(0, 4))
    assert plain.llen("plain") == 8
    plain.delete("plain")
    plain.rpush("plain", *payloads(0, 8))
    lossy_proxy.lose("LPOP")
    assert plain.lpop("plain", 4) == payloads(4, 8)
    plain.close()


# --- the scripts against a model ---


class Model:
    """The queue as `meta`, `samples` and `inflight` lists of positions."""

    def __init__(self) -> None:
        self.alive = False
        self.base = self.head = 0
        self.producer = self.trainer = ""
        self.samples: list[int] = []
        self.inflight: list[int] = []

    @property
    def tail(self) -> int:
        return self.head + len(self.samples)

    def restart_at(self, position: int) -> None:
        self.alive, self.base, self.head = True, position, position
        self.samples, self.inflight = [], []


class QueueMachine(RuleBasedStateMachine):
    """Every script, with retries, stale arguments, zombies and wipes; the answers and the lists must be the model's."""

    trainers = Bundle("trainers")
    queue: SampleQueue

    @initialize()
    def begin(self) -> None:
        self.queue.clear()
        self.model = Model()

    def run(self, script: str, *arguments: Any, retry: bool = False) -> list[Any]:
        if retry:
            self.queue.run(script, *arguments)
        return [part.decode() if isinstance(part, bytes) else part for part in self.queue.run(script, *arguments)]

    @rule(position=st.integers(0, 30), retry=st.booleans())
    def open(self, position: int, retry: bool) -> None:
        answer = self.run("open", position, "plan", 100, "{}", "producer", 0, retry=retry)
        if not self.model.alive:
            self.model.restart_at(position)
        self.model.producer = "producer"
        assert answer == ["ok", self.model.tail]

    @rule(count=st.integers(1, 12), off=st.sampled_from([0, 0, 0, -3, 2]), retry=st.booleans())
    def push(self, count: int, off: int, retry: bool) -> None:
        model, expected = self.model, self.model.tail + off
        items = list(range(expected, expected + count))
        answer = self.run("push", "producer", expected, 2**40, 0, *(payload(p) for p in items), retry=retry)
        if not model.alive or not model.producer:
            assert answer == ["lost"]
        elif off:
            assert answer[:2] == ["moved", model.tail]
        else:
            model.samples += items
            assert answer[:2] == ["moved" if retry else "ok", model.tail]

    @rule(target=trainers, token=st.uuids().map(str), off=st.integers(-5, 25), retry=st.booleans())
    def new_trainer(self, token: str, off: int, retry: bool) -> str:
        self.attach(token, max(0, self.model.base + off), True, retry)
        return token

    @rule(token=trainers, off=st.integers(-5, 25), retry=st.booleans())
    def attach_again(self, token: str, off: int, retry: bool) -> None:
        self.attach(token, max(0, self.model.base + off), False, retry)

    def attach(self, token: str, position: int, take_over: bool, retry: bool) -> None:
        model = self.model
        answer = self.run("attach", token, position, int(take_over), "plan", 100, "{}", retry=retry)
        if not model.alive:
            model.restart_at(position)
            model.producer = ""
        elif model.trainer not in ("", token) and not take_over:
            assert answer == ["fenced", model.trainer]
            return
        elif model.base <= position <= model.head:
            model.inflight, model.base = model.inflight[position - model.base :], position
        elif model.head < position <= model.tail:
            model.samples, model.inflight = model.samples[position - model.head :], []
            model.base = model.head = position
        else:
            model.restart_at(position)
        model.trainer = token
        assert answer == ["ok"]

    @rule(token=trainers, off=st.integers(-2, 20), count=st.integers(1, 8), retry=st.booleans())
    def take(self, token: str, off: int, count: int, retry: bool) -> None:
        model, start = self.model, max(0, self.model.base + off)
        answer = self.run("take", token, start, count, 0, 2**40, 0, retry=retry)
        if not model.alive or not model.trainer:
            assert answer == ["lost"]
        elif model.trainer != token:
            assert answer == ["fenced", model.trainer]
        elif start < model.base:
            assert answer == ["behind"]
        elif start + count > model.tail:
            assert answer[:2] == ["wait", model.tail]
        else:
            missing = max(0, start + count - model.head)
            model.inflight += model.samples[:missing]
            model.samples, model.head = model.samples[missing:], model.head + missing
            assert answer == ["ok", *(payload(p).decode() for p in range(start, start + count))]

    @rule(token=trainers, off=st.integers(-2, 20), retry=st.booleans())
    def commit(self, token: str, off: int, retry: bool) -> None:
        model, upto = self.model, max(0, self.model.base + off)
        answer = self.run("commit", token, upto, "commit", 2**40, retry=retry)
        if not model.alive or not model.trainer:
            assert answer == ["lost"]
        elif model.trainer != token:
            assert answer == ["fenced", model.trainer]
        else:
            if model.base < upto <= model.head:
                model.inflight, model.base = model.inflight[upto - model.base :], upto
            assert answer == ["ok", 0]

    @rule()
    def wipe(self) -> None:
        self.queue.connection.call(lambda client: client.flushall())
        self.model = Model()

    @invariant()
    def the_lists_are_the_models(self) -> None:
        keys = self.queue.keys
        samples, inflight = (
            self.queue.connection.call(lambda client, key=key: client.lrange(key, 0, -1))  # type: ignore[misc]
            for key in keys[:2]
        )
        assert samples == [payload(p) for p in self.model.samples]
        assert inflight == [payload(p) for p in self.model.inflight]
        status = self.queue.status()
        assert (status.position, status.head, status.tail) == (self.model.base, self.model.head, self.model.tail)
        assert status.inflight_bytes == len(inflight) * allocated(40)


def test_the_scripts_do_what_a_small_model_does(redis_config: RedisConfig) -> None:
    QueueMachine.queue = open_queue(redis_config)
    short = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(QueueMachine, settings=short)


# --- memory ---


def test_the_arithmetic_of_memory_is_the_same_in_lua_and_in_python(redis_config: RedisConfig) -> None:
    source = _source("status")[0]
    common = source[: source.index("-- All there is to know")]
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


@pytest.mark.parametrize("size", [54_000, 480_000])
@pytest.mark.parametrize("with_trainer", [False, True], ids=["no trainer", "a fast trainer"])
def test_used_memory_never_exceeds_a_limit_of_32_mb(
    own_embedded: OwnEmbedded, size: int, with_trainer: bool, in_background: Callable[..., threading.Thread]
) -> None:
    config = own_embedded(32)
    writer = make_writer(config)
    in_background(produce, writer, 0, 10**6, size, 32)
    queue = open_queue(config)
    if with_trainer:
        trainer = Trainer(config)
        end = time.monotonic() + 2
        start = 0
        while time.monotonic() < end:
            assert trainer.train(start, start + 4) == payloads(start, start + 4, size)
            start += 4
            assert queue.status().inflight_bytes <= config.max_memory_bytes / 2
        assert start > 100
    else:
        time.sleep(1.5)
        trainer = Trainer(config)
    status = queue.status()
    trainer.reader.finish()
    assert status.used_memory_peak_bytes <= status.limit_bytes == config.max_memory_bytes
    assert status.used_memory_peak_bytes > 0.75 * status.limit_bytes


def test_most_of_a_limit_of_64_mb_is_usable(
    own_embedded: OwnEmbedded, in_background: Callable[..., threading.Thread]
) -> None:
    config = own_embedded(64)
    writer = make_writer(config)
    in_background(produce, writer, 0, 10**6, 54_000, 32)
    time.sleep(1.5)
    status = writer.status()
    Trainer(config).reader.finish()
    assert status.used_memory_peak_bytes <= status.limit_bytes
    assert status.depth * 54_000 > 0.85 * status.limit_bytes


def test_the_scripts_work_above_the_servers_own_limit(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 40, 54_000))
    trainer = Trainer(redis_config)
    connection = connect(redis_config)
    try:
        connection.call(lambda client: client.config_set("maxmemory", 1_000_000))
        with pytest.raises(redis.ResponseError, match="maxmemory"), redis.Redis(port=redis_config.port) as client:
            client.rpush("plain", "x")
        writer._beaten_at = float("-inf")
        writer.heartbeat()
        assert writer._push_once(40, payloads(40, 41, 54_000), [])[0] == b"full"
        Trainer(redis_config, "trainer-2").reader.take(0, 2)
        with pytest.raises(FencedError):
            trainer.reader.take(2, 2)
        second = Trainer(redis_config, "trainer-2", attach=2)
        assert second.train(2, 10) == payloads(2, 10, 54_000)
        second.reader.commit(10)
        second.reader.finish()
        assert writer.status().position == 10
        assert open_queue(redis_config).clear()["samples"] > 0
    finally:
        connection.call(lambda client: client.config_set("maxmemory", redis_config.max_memory_bytes))


def test_trained_samples_stay_in_flight_up_to_half_of_the_limit(redis_config: RedisConfig) -> None:
    small = dataclasses.replace(redis_config, max_memory_gb=32 / 1024)
    writer = make_writer(small)
    writer.push(0, payloads(0, 200, 100_000))
    trainer = Trainer(small)
    for start in range(0, 192, 8):
        trainer.train(start, start + 8)
        status = trainer.reader.status()
        assert status.inflight_bytes <= small.max_memory_bytes / 2
    assert status.inflight_bytes > 0.9 * small.max_memory_bytes / 2
    assert status.position > 0
    trainer.trained.value = status.position  # nothing that is not trained may go
    assert trainer.reader.take(192, 8) == payloads(192, 200, 100_000)
    assert trainer.reader.status().position == status.position


def test_a_take_itself_keeps_in_flight_samples_to_half_of_the_limit(redis_config: RedisConfig) -> None:
    small = dataclasses.replace(redis_config, max_memory_gb=32 / 1024)
    make_writer(small).push(0, payloads(0, 200, 100_000))
    trainer = Trainer(small)
    for start in range(0, 200, 8):
        trainer.reader.take(start, 8)
        trainer.trained.value = start  # trained, but not trimmed: the batch before
        assert trainer.reader.status().inflight_bytes <= small.max_memory_bytes / 2
    assert trainer.reader.status().position > 0


def test_a_resume_reads_in_flight_samples_again_without_exceeding_the_limit(
    own_embedded: OwnEmbedded, in_background: Callable[..., threading.Thread]
) -> None:
    config = own_embedded(32)
    writer = make_writer(config)
    in_background(produce, writer, 0, 10**6, 54_000, 32)
    Trainer(config).reader.take(0, 250)  # about 14 MB in flight, none of them committed
    deadline = time.monotonic() + 10
    while not writer.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    second = Trainer(config, "trainer-2", attach=0)
    assert second.reader.take(0, 250) == payloads(0, 250, 54_000)
    status = second.reader.status()
    second.reader.finish()
    assert 0.8 * status.limit_bytes < status.used_memory_peak_bytes <= status.limit_bytes


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


# --- wiped or dead servers, with either end alive ---


@pytest.mark.parametrize("fault", ["wiped", "killed"])
def test_a_wipe_with_both_ends_alive_disturbs_nothing(
    own_embedded: OwnEmbedded, fault: str, in_background: Callable[..., threading.Thread]
) -> None:
    config = own_embedded(100)
    in_background(produce, make_writer(config), 0, 400)
    trainer = Trainer(config)
    taken: list[bytes] = []
    for start in range(0, 400, 8):
        if start in (96, 240):
            pid = embedded_pid(config)
            assert pid is not None
            if fault == "killed":
                os.kill(pid, signal.SIGKILL)
            else:
                connect(config).call(lambda client: client.flushall())
        taken += trainer.train(start, start + 8)
    trainer.reader.finish()
    assert taken == payloads(0, 400)


def test_a_server_that_stands_still_beyond_the_time_out_disturbs_nothing(
    own_embedded: OwnEmbedded, monkeypatch: pytest.MonkeyPatch, in_background: Callable[..., threading.Thread]
) -> None:
    monkeypatch.setattr(
        "sample_queue.connection.SOCKET_TIMEOUT_S", 0.15
    )  # so that commands are sent again while the first still waits
    config = own_embedded(32)
    in_background(produce, make_writer(config), 0, 3000, 54_000, 32)
    trainer = Trainer(config)
    pid = embedded_pid(config)
    assert pid is not None
    for start in range(0, 3000, 8):
        if start % 600 == 200:
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()
        assert trainer.train(start, start + 8) == payloads(start, start + 8, 54_000)
    status = trainer.reader.status()
    trainer.reader.finish()
    assert status.used_memory_peak_bytes <= status.limit_bytes


@pytest.mark.parametrize("name", ["samples", "inflight", "meta"])
def test_a_key_deleted_by_hand_disturbs_nothing(
    redis_config: RedisConfig, name: str, in_background: Callable[..., threading.Thread]
) -> None:
    in_background(produce, make_writer(redis_config), 0, 200)
    trainer = Trainer(redis_config)
    assert trainer.train(0, 40) == payloads(0, 40)
    with redis.Redis(port=redis_config.port) as client:
        client.delete(f"whisper:{name}")
    assert trainer.train(40, 200) == payloads(40, 200)
    trainer.reader.commit(200)
    trainer.reader.finish()


def test_a_wipe_with_only_the_trainer_alive_waits_for_a_producer(
    redis_config: RedisConfig, in_background: Callable[..., threading.Thread]
) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 40))
    trainer = Trainer(redis_config)
    trainer.train(0, 24)
    writer.close()
    open_queue(redis_config).clear()
    later = threading.Timer(0.4, lambda: produce(second, second.open(0), 60))
    second = SampleWriter(redis_config, CARD)
    later.start()
    assert trainer.train(24, 60) == payloads(24, 60)
    trainer.reader.finish()
    later.join(20)


def test_a_wipe_with_only_the_producer_alive_goes_on_at_the_checkpoint_of_the_next_trainer(
    redis_config: RedisConfig, in_background: Callable[..., threading.Thread]
) -> None:
    writer = make_writer(redis_config)
    Trainer(redis_config)
    writer.push(0, payloads(0, 40))
    open_queue(redis_config).clear()
    in_background(produce, writer, 40, 60)
    time.sleep(0.1)
    second = Trainer(redis_config, "trainer-2", attach=16)
    assert second.train(16, 60) == payloads(16, 60)
    second.reader.finish()


# --- who may do what ---


def test_a_second_trainer_takes_over_and_the_first_is_told(redis_config: RedisConfig) -> None:
    make_writer(redis_config).push(0, payloads(0, 40))
    first = Trainer(redis_config)
    first.train(0, 8)
    second = Trainer(redis_config, "trainer-2", attach=0)
    for forbidden in (
        lambda: first.reader.take(8, 8),
        lambda: first.reader.commit(8),
        lambda: first.reader.trim(8),
        first.reader.finish,
    ):
        with pytest.raises(FencedError, match=r"another trainer \(trainer-2\) has taken over namespace 'whisper'"):
            forbidden()
    assert second.train(0, 40) == payloads(0, 40)


def test_a_second_producer_is_refused_while_the_first_lives(redis_config: RedisConfig) -> None:
    first = make_writer(redis_config)
    with pytest.raises(ProducerBusyError, match="already feeds namespace 'whisper'"):
        make_writer(redis_config)
    first.close()
    assert make_writer(redis_config)


def test_a_dead_producer_on_this_machine_is_taken_over_at_once(redis_config: RedisConfig) -> None:
    code = (
        "import sys; from config import RedisConfig; from sample_queue.protocol import PlanCard;"
        "from sample_queue.writer import SampleWriter;"
        f"w = SampleWriter(RedisConfig(port={redis_config.port}, max_memory_gb=0.19), {CARD!r}); w.open();"
        "w.push(0, [b'a', b'b']); print('pushed', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"pushed\n"
    with pytest.raises(ProducerBusyError):
        make_writer(redis_config)
    first.kill()
    first.wait()
    second = SampleWriter(redis_config, CARD)
    assert second.open() == 2
    assert second.status().producer == second.token


def test_a_producer_that_was_replaced_is_told_at_its_next_push(redis_config: RedisConfig) -> None:
    first, second = make_writer(redis_config), SampleWriter(redis_config, CARD)
    second._open(0, take_over=True)
    with pytest.raises(FencedError, match="another producer"):
        first.push(0, payloads(0, 1))
    assert second.push(0, payloads(0, 1)) == 1


def test_a_producer_on_another_machine_is_taken_over_once_it_is_silent(redis_config: RedisConfig) -> None:
    first = make_writer(redis_config)
    with redis.Redis(port=redis_config.port) as client:
        client.hset("whisper:meta", "producer", "elsewhere/1:1:1:abcd")
        with pytest.raises(ProducerBusyError):
            make_writer(redis_config)
        client.hincrby("whisper:meta", "producer_seen", -16_000)
        assert not first.status().producer_alive
    assert make_writer(redis_config).status().producer_alive


def test_another_plan_in_the_namespace_is_refused_with_the_two_remedies(redis_config: RedisConfig) -> None:
    make_writer(redis_config)
    trainer = Trainer(redis_config)
    trainer.reader.card = dataclasses.replace(CARD, fingerprint="plan-b")
    remedies = r"holds another plan.*redis_manager.py clear.*--redis.namespace"
    with pytest.raises(ForeignPlanError, match=remedies):
        SampleWriter(redis_config, dataclasses.replace(CARD, fingerprint="plan-b")).open()
    with pytest.raises(ForeignPlanError, match=remedies):
        trainer.reader.attach(0)


def test_a_finished_run_ends_its_producer_and_refuses_another(
    redis_config: RedisConfig, in_background: Callable[..., threading.Thread]
) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 4))
    trainer = Trainer(redis_config)
    trainer.reader.finish()
    with pytest.raises(RunFinished):
        writer.push(4, payloads(4, 8))
    with pytest.raises(RunFinished):
        writer.linger(4)
    for refused in (
        lambda: make_writer(redis_config),
        lambda: Trainer(redis_config, "b"),
        trainer.reader.wait_for_plan,
    ):
        with pytest.raises(FinishedRunError, match=r"is finished: run .*clear.*--redis.namespace"):
            refused()


def test_a_producer_that_waits_for_room_ends_when_the_trainer_is_done(
    own_embedded: OwnEmbedded,
    in_background: Callable[..., threading.Thread],
) -> None:
    config = own_embedded(32)
    writer = make_writer(config)
    thread = in_background(produce, writer, 0, 10**6, 480_000, 8)
    trainer = Trainer(config)
    deadline = time.monotonic() + 10
    while not writer.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.is_alive()
    trainer.reader.finish()
    thread.join(5)
    assert not thread.is_alive()
    assert writer.waited_s > 0


# --- waiting ---


def test_a_trainer_that_comes_first_waits_for_the_plan_and_knows_that_a_producer_prepares_it(
    redis_config: RedisConfig,
) -> None:
    announcement = announce_producer(redis_config)
    trainer = Trainer(redis_config, attach=None)
    assert trainer.reader.status().producer_alive
    assert trainer.reader.status().planned == 0
    announcement.close()
    assert not trainer.reader.status().producer_alive
    threading.Timer(0.3, make_writer, (redis_config,)).start()
    assert trainer.reader.wait_for_plan() == CARD


def test_a_trainer_gives_up_when_no_producer_has_been_seen_for_long(redis_config: RedisConfig) -> None:
    impatient = dataclasses.replace(redis_config, producer_timeout_s=0.5)
    with pytest.raises(ProducerGoneError, match="waited for the plan, but no producer"):
        Trainer(impatient, attach=None).reader.wait_for_plan()
    writer = make_writer(redis_config)
    trainer = Trainer(impatient)
    writer.close()
    with pytest.raises(
        ProducerGoneError, match=r"waited for samples up to position 7, but no producer .* start prepro_add2radis"
    ):
        trainer.reader.take(0, 8)


def test_a_stop_ends_every_wait_of_a_trainer(redis_config: RedisConfig) -> None:
    trainer = Trainer(redis_config, attach=None)
    with pytest.raises(StopRequested):
        trainer.reader.wait_for_plan(lambda: True)
    make_writer(redis_config)
    trainer = Trainer(redis_config)
    threading.Timer(0.2, trainer.stop.set).start()
    with pytest.raises(StopRequested):
        trainer.reader.take(0, 8)


def test_a_reader_that_is_told_to_stop_does_not_make_a_cleared_queue_anew(redis_config: RedisConfig) -> None:
    make_writer(redis_config)
    trainer = Trainer(redis_config)
    trainer.stop.set()
    open_queue(redis_config).clear()
    with pytest.raises(StopRequested):
        trainer.reader.take(0, 4)
    assert not open_queue(redis_config).status().planned


def test_a_long_wait_says_what_it_waits_for(
    redis_config: RedisConfig, caplog: pytest.LogCaptureFixture, in_background: Callable[..., threading.Thread]
) -> None:
    caplog.set_level(logging.INFO)
    writer = make_writer(redis_config)
    trainer = Trainer(redis_config)
    threading.Timer(5.6, lambda: writer.push(0, payloads(0, 8))).start()
    trainer.reader.take(0, 8)
    assert (
        "waiting for samples up to position 7; the queue ends at 0, the producer is alive (for 5 s so far)"
        in caplog.text
    )


def test_waiting_takes_no_more_than_two_percent_of_a_core(
    redis_config: RedisConfig, in_background: Callable[..., threading.Thread]
) -> None:
    writer = make_writer(dataclasses.replace(redis_config, sleep_seconds=0.5))
    trainer = Trainer(redis_config)
    in_background(produce, writer, 0, 0)
    used, began = time.process_time(), time.monotonic()
    threading.Timer(3, trainer.stop.set).start()
    with pytest.raises(StopRequested):
        trainer.reader.take(0, 8)
    share = (time.process_time() - used) / (time.monotonic() - began)
    trainer.stop.clear()
    trainer.reader.finish()
    assert share < 0.02


def test_a_reader_travels_to_a_worker_process(redis_config: RedisConfig) -> None:
    make_writer(redis_config).push(0, payloads(0, 8))
    reader = SampleReader(redis_config, "trainer-1", SimpleNamespace(value=0), SimpleNamespaceEvent())
    reader.attach(0)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.take(0, 8) == reader.take(0, 8) == payloads(0, 8)


class SimpleNamespaceEvent:
    """An event that can be pickled outside of process creation."""

    def is_set(self) -> bool:
        return False


# --- the program ---


def program(config: RedisConfig, *arguments: str) -> subprocess.CompletedProcess[str]:
    flags = [f"--redis.port={config.port}", f"--redis.max_memory_gb={config.max_memory_gb}"]
    command = [sys.executable, "redis_manager.py", *arguments, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_program_starts_shows_clears_and_stops(free_port: int) -> None:
    config = RedisConfig(port=free_port, max_memory_gb=0.05)
    dead = program(config, "status")
    assert (dead.returncode, dead.stdout) == (2, "")
    assert f"error: no redis listens at localhost:{free_port}" in dead.stderr
    assert "Traceback" not in dead.stderr
    try:
        assert "started redis" in program(config, "start").stdout
        assert "runs already" in program(config, "start").stdout
        make_writer(config).push(0, payloads(0, 5), ["row 1: broken"])
        Trainer(config).reader.take(0, 2)
        shown = json.loads(program(config, "status", "--json").stdout)
        assert shown["depth"] == 3
        assert shown["inflight"] == 2
        assert {"position": 0, "head": 2, "tail": 5, "planned": 100_000, "rejected": 1}.items() <= shown.items()
        assert shown["trainer_attached"] is True
        assert shown["producer_alive"] is True
        assert 0 < shown["used_memory_bytes"] <= shown["used_memory_peak_bytes"] <= shown["limit_bytes"]
        table = program(config, "status").stdout
        assert "queued     3 samples" in table
        assert "producer   alive" in table
        assert "3 queued samples, 2 in flight, 1 rejected lines, 1 plan" in program(config, "clear").stdout
        assert "was empty" in program(config, "clear").stdout
    finally:
        stopped = program(config, "stop")
    assert "stopped redis" in stopped.stdout
    assert "nothing to stop" in program(config, "stop").stdout


def test_the_programs_help_tells_its_actions() -> None:
    shown = program(RedisConfig(), "--help")
    assert shown.returncode == 0
    assert "python redis_manager.py status --json" in shown.stdout


# --- leaving ---


def test_a_producer_that_lingers_serves_its_trainer_although_the_queue_was_wiped(
    redis_config: RedisConfig, in_background: Callable[..., threading.Thread]
) -> None:
    writer, tails = make_writer(redis_config), []
    writer.push(0, payloads(0, 4))
    trainer = Trainer(redis_config)
    lingering = in_background(lambda: tails.append(writer.linger(4)))
    time.sleep(0.3)  # it has seen the trainer by now
    with redis.Redis(port=redis_config.port) as client:
        client.flushall()
    time.sleep(0.5)
    assert not tails, "it left although its trainer lives"
    taking = in_background(lambda: trainer.reader.take(0, 4))
    lingering.join(10)
    assert tails == [0]
    writer.push(0, payloads(0, 4))
    taking.join(10)


def test_a_producer_that_met_its_trainer_while_it_pushed_stays_although_the_queue_was_wiped_since(
    redis_config: RedisConfig, in_background: Callable[..., threading.Thread]
) -> None:
    writer = make_writer(redis_config)
    Trainer(redis_config)  # it dies soon after
    writer.push(0, payloads(0, 4))
    with redis.Redis(port=redis_config.port) as client:
        client.flushall()
    assert writer.push(4, payloads(4, 8)) == 4  # it makes the queue anew, and goes on where it was
    assert writer.push(4, payloads(4, 8)) == 8
    lingering = in_background(writer.linger, 8)
    time.sleep(0.3)
    assert lingering.is_alive(), "it left although a trainer will come back"
    Trainer(redis_config, "trainer-2", attach=2)
    lingering.join(10)


def test_without_a_trainer_a_producer_does_not_linger(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 4))
    assert writer.linger(4) == 4


def test_leaving_does_not_wait_for_a_server_that_hangs(own_redis: Callable[..., RedisConfig]) -> None:
    config = own_redis()
    writer = make_writer(config)
    with redis.Redis(port=config.port) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        writer.close()
        assert time.monotonic() - started < 8
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_producer_whose_run_was_wiped_and_finished_meanwhile_ends_well(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 4))
    trainer = Trainer(redis_config)
    with redis.Redis(port=redis_config.port) as client:
        client.flushall()
    trainer.reader.finish()
    with pytest.raises(RunFinished):
        writer.linger(4)
