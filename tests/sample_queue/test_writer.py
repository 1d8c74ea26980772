"""The producer's end: one producer at a time, no more than fits, and no end before the trainer's."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from config import RedisConfig
from sample_queue.errors import (
    FencedError,
    FinishedRunError,
    ForeignPlanError,
    ProducerBusyError,
    RunFinished,
)
from sample_queue.writer import SampleWriter
from tests.queues import CARD, Trainer, make_writer, payloads, produce

ROOT = Path(__file__).parents[2]
OwnEmbedded = Callable[[float], RedisConfig]
InBackground = Callable[..., threading.Thread]


def test_rejected_recordings_are_listed_once(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 2), rejected=["row 3: unreadable", "row 9: too long"])
    writer.push(2, payloads(2, 4), rejected=["row 3: unreadable"])
    writer.push(4, [], rejected=[f"row {row}: empty" for row in range(100, 600)])
    assert writer.status().rejected == 502
    with redis.Redis(port=redis_config.port) as client:
        assert client.lrange("whisper:rejected", 0, 1) == [b"row 3: unreadable", b"row 9: too long"]


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
    redis_config: RedisConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sample_queue.reader.FAREWELL_S", 0.1)
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 4))
    trainer = Trainer(redis_config)
    trainer.reader.finish()
    with pytest.raises(RunFinished):
        writer.push(4, payloads(4, 8))
    with pytest.raises(RunFinished):
        writer.wait_at_end(4)
    for refused in (
        lambda: make_writer(redis_config),
        lambda: Trainer(redis_config, "b"),
        trainer.reader.wait_for_plan,
    ):
        with pytest.raises(FinishedRunError, match=r"is finished: run .*clear.*--redis.namespace"):
            refused()


def test_a_producer_that_waits_for_room_ends_when_the_trainer_is_done(
    own_embedded: OwnEmbedded,
    in_background: InBackground,
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


def test_a_producer_that_lingers_serves_its_trainer_although_the_queue_was_wiped(
    redis_config: RedisConfig, in_background: InBackground
) -> None:
    writer, tails = make_writer(redis_config), []
    writer.push(0, payloads(0, 4))
    trainer = Trainer(redis_config)
    waiting = in_background(lambda: tails.append(writer.wait_at_end(4)))
    time.sleep(0.3)  # it has seen the trainer by now
    with redis.Redis(port=redis_config.port) as client:
        client.flushall()
    time.sleep(0.5)
    assert not tails, "it left although its trainer lives"
    taking = in_background(lambda: trainer.reader.take(0, 4))
    waiting.join(10)
    assert tails == [0]
    writer.push(0, payloads(0, 4))
    taking.join(10)


def test_a_producer_that_met_its_trainer_while_it_pushed_stays_although_the_queue_was_wiped_since(
    redis_config: RedisConfig, in_background: InBackground
) -> None:
    writer = make_writer(redis_config)
    Trainer(redis_config)  # it dies soon after
    writer.push(0, payloads(0, 4))
    with redis.Redis(port=redis_config.port) as client:
        client.flushall()
    assert writer.push(4, payloads(4, 8)) == 4  # it makes the queue anew, and goes on where it was
    assert writer.push(4, payloads(4, 8)) == 8
    waiting = in_background(writer.wait_at_end, 8)
    time.sleep(0.3)
    assert waiting.is_alive(), "it left although a trainer will come back"
    Trainer(redis_config, "trainer-2", attach=2)
    waiting.join(10)


def test_without_a_trainer_a_producer_does_not_wait_at_end(redis_config: RedisConfig) -> None:
    writer = make_writer(redis_config)
    writer.push(0, payloads(0, 4))
    assert writer.wait_at_end(4) == 4


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
        writer.wait_at_end(4)
