"""A server that is wiped, dies, hangs or is busy disturbs nothing, and nobody waits for it longer than wanted."""

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
from sample_queue.connection import connect
from sample_queue.embedded_server import embedded_pid
from sample_queue.errors import StopRequested
from sample_queue.protocol import open_queue
from sample_queue.server_errors import ServerLostError
from sample_queue.writer import SampleWriter
from tests.queues import CARD, Trainer, make_writer, payloads, produce
from tests.servers import broken, end_script

ROOT = Path(__file__).parents[2]
OwnEmbedded = Callable[[float], RedisConfig]
InBackground = Callable[..., threading.Thread]


@pytest.mark.parametrize("fault", ["wiped", "killed"])
def test_a_wipe_with_both_ends_alive_disturbs_nothing(
    own_embedded: OwnEmbedded, fault: str, in_background: InBackground
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
    own_embedded: OwnEmbedded, monkeypatch: pytest.MonkeyPatch, in_background: InBackground
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
    redis_config: RedisConfig, name: str, in_background: InBackground
) -> None:
    in_background(produce, make_writer(redis_config), 0, 200)
    trainer = Trainer(redis_config)
    assert trainer.train(0, 40) == payloads(0, 40)
    with redis.Redis(port=redis_config.port) as client:
        client.delete(f"whisper:{name}")
    assert trainer.train(40, 200) == payloads(40, 200)
    trainer.reader.commit(200)
    trainer.reader.finish()


def test_a_wipe_with_only_the_trainer_alive_waits_for_a_producer(redis_config: RedisConfig) -> None:
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
    redis_config: RedisConfig, in_background: InBackground
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


FAULTS = ["killed", "hung", "busy"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_trainer_that_is_told_to_stop_does_not_wait_for_the_server(
    own_redis: Callable[..., RedisConfig], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sample_queue.connection.SOCKET_TIMEOUT_S", 0.3)
    config = own_redis("lua-time-limit 50")
    make_writer(config).push(0, payloads(0, 8))
    trainer = Trainer(config)
    waits: list[Callable[[], object]] = [
        trainer.reader.status,
        trainer.reader.wait_for_plan,
        trainer.reader.finish,
        lambda: trainer.reader.take(0, 8),
        lambda: trainer.reader.trim(0),
        lambda: trainer.reader.commit(0),
    ]
    with broken(config, fault):
        threading.Timer(0.5, trainer.stop.set).start()
        for wait in waits:
            started = time.monotonic()
            with pytest.raises(StopRequested):
                wait()
            assert time.monotonic() - started < 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_producer_that_waits_for_the_server_ends_on_a_signal(
    own_redis: Callable[..., RedisConfig], fault: str
) -> None:
    config = dataclasses.replace(own_redis("lua-time-limit 50"), reconnect_timeout_s=60)
    body = (
        "from common.command_line import run\n"
        "from config import RedisConfig\n"
        "from sample_queue.writer import SampleWriter\n"
        "from tests.queues import CARD\n"
        "def main():\n"
        f"    writer = SampleWriter({config!r}, CARD); writer.open(); print('open', flush=True)\n"
        "    try:\n"
        "        while True: writer.status(); writer.heartbeat()\n"
        "    finally: writer.close()\n"
        "run(main)"
    )
    with subprocess.Popen([sys.executable, "-c", body], cwd=ROOT, stdout=subprocess.PIPE) as producer:
        assert producer.stdout is not None
        assert producer.stdout.readline() == b"open\n"
        with broken(config, fault):
            time.sleep(0.5)
            producer.send_signal(signal.SIGTERM)
            assert producer.wait(10) == 143


def test_a_server_that_is_busy_with_a_script_of_others_is_waited_for_and_then_given_up(
    own_redis: Callable[..., RedisConfig], caplog: pytest.LogCaptureFixture
) -> None:
    patient = own_redis("lua-time-limit 50")
    config = dataclasses.replace(patient, reconnect_timeout_s=0.6)
    connection, patient_connection = connect(config), connect(patient)
    reason = r"did not answer for 1 s .*another client's script; end that with `redis-cli script kill`"
    with broken(config, "busy"):
        with pytest.raises(ServerLostError, match=reason):
            connection.call(lambda client: client.ping())
        with pytest.raises(ServerLostError, match=reason):
            connect(config)
        threading.Timer(0.5, end_script, (config,)).start()
        assert patient_connection.call(lambda client: client.ping())
    with broken(config, "busy"):
        threading.Timer(0.5, end_script, (config,)).start()
        assert connect(patient)
    assert "another client's script is running): trying again for up to 5 s" in caplog.text
