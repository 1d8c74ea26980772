"""The queue is first in, first out; it loses nothing and doubles nothing, and does what a small model does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from config import RedisConfig
from sample_queue.connection import connect
from sample_queue.errors import FencedError
from sample_queue.memory import allocated
from sample_queue.protocol import SampleQueue, open_queue, script_source
from sample_queue.writer import SampleWriter
from tests.queues import CARD, Trainer, make_writer, payload, payloads
from tests.servers import LossyProxy


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


def test_positions_are_exact_in_long_runs(redis_config: RedisConfig) -> None:
    far = 2**52 + 1
    writer = make_writer(redis_config, far)
    assert writer.push(far, payloads(0, 3)) == far + 3
    assert Trainer(redis_config, attach=far).reader.take(far + 1, 2) == payloads(1, 3)


def test_two_namespaces_on_one_server_do_not_meet(redis_config: RedisConfig) -> None:
    other = dataclasses.replace(redis_config, namespace="other")
    make_writer(redis_config).push(0, payloads(0, 3))
    writer = SampleWriter(other, dataclasses.replace(CARD, fingerprint="plan-b"))
    assert writer.open() == 0
    assert writer.status().depth == 0


KINDS = ["open", "push", "take", "commit", "attach", "finish", "status", "heartbeat"]


@pytest.mark.parametrize("before", [False, True], ids=["reply lost", "command lost"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_connection_loses_nothing_and_doubles_nothing(lossy_proxy: LossyProxy, kind: str, before: bool) -> None:
    config = lossy_proxy.config
    direct = dataclasses.replace(config, port=lossy_proxy.target.port)
    writer = SampleWriter(config, CARD)
    for script in KINDS:  # known to the server, so that the sha in the command is what the proxy sees
        writer._queue.connection.call(lambda client, script=script: client.script_load(script_source(script)[0]))  # type: ignore[misc]
    lossy_proxy.lose(script_source(kind)[1], before)
    writer.open()
    tail = 0
    while tail < 48:
        tail = writer.push(tail, payloads(tail, tail + 16))
    writer.heartbeat()
    writer._beaten_at = float("-inf")
    writer.heartbeat()
    trainer = Trainer(config)
    taken = [sample for start in range(0, 48, 8) for sample in trainer.train(start, start + 8)]
    trainer.reader.commit(40)
    status = trainer.reader.status()
    writer.close()  # `finish` waits for a producer that lives
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
        writer.close()
        second.reader.finish()
        assert writer.status().position == 10
        assert open_queue(redis_config).clear()["samples"] > 0
    finally:
        connection.call(lambda client: client.config_set("maxmemory", redis_config.max_memory_bytes))


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
