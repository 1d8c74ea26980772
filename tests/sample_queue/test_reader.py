"""The trainer's end takes exactly its positions, drops what is trained, and waits no longer than it must."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from config import RedisConfig
from sample_queue.errors import FencedError, ProducerGoneError, StopRequested
from sample_queue.memory import allocated
from sample_queue.protocol import open_queue
from sample_queue.reader import SampleReader
from sample_queue.writer import announce_producer
from tests.queues import CARD, Trainer, make_writer, payload, payloads, produce

OwnEmbedded = Callable[[float], RedisConfig]
InBackground = Callable[..., threading.Thread]


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
    own_embedded: OwnEmbedded, in_background: InBackground
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


def test_a_trainer_behind_the_queue_makes_the_producer_go_back(
    redis_config: RedisConfig, in_background: InBackground
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
    threading.Timer(0.2, trainer.stop.set).start()
    with pytest.raises(StopRequested):
        trainer.reader.wait_for_plan()
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
    redis_config: RedisConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sample_queue.waiting_log.FIRST_AFTER_S", 0.3)
    writer = make_writer(redis_config)
    trainer = Trainer(redis_config)
    threading.Timer(1.0, lambda: writer.push(0, payloads(0, 8))).start()
    trainer.reader.take(0, 8)
    expected = r"waiting for samples up to position 7; the queue ends at 0, the producer is alive \(for \d s so far\)"
    assert re.search(expected, caplog.text)


def test_waiting_takes_no_more_than_two_percent_of_a_core(
    redis_config: RedisConfig, in_background: InBackground
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
