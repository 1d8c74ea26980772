"""Servers with a password, an ACL, TLS or a socket: a sample's whole way through each, and no password anywhere."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from config import RedisConfig
from sample_queue.embedded_server import embedded_pid, runtime_folder
from sample_queue.errors import RunFinished
from sample_queue.protocol import open_queue
from sample_queue.reader import SampleReader
from sample_queue.writer import SampleWriter, announce_producer
from tests.queues import CARD, payloads
from tests.runs import PRODUCER, ROOT, TRAINER, Run, ending, wait_until
from tests.sample_queue.test_connection import ACL_LINE
from tests.tls import tls_end

SECRET = "open-sesame"
WAYS = ["password in the environment", "password in the URL", "ACL user", "TLS", "unix socket"]


@dataclass
class Access:
    """How to reach a server."""

    config: RedisConfig
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> dict[str, object]:
        """What the scripts need to be told."""
        place = {"redis.url": self.config.url} if self.config.url else {"redis.port": self.config.port}
        return {**place, "redis.host": "127.0.0.1", "redis.embedded": False, "redis.namespace": "whisper"}


@pytest.fixture
def access(
    request: pytest.FixtureRequest, own_redis: Callable[..., RedisConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Access]:  # fmt: skip
    """A server that is reached in the way that the test's parameter names; its environment is set."""
    way = request.param
    if way == "unix socket":
        config = own_redis(f"requirepass {SECRET}", unix_socket=True)
        found = Access(dataclasses.replace(config, url=f"{config.url}?password={SECRET}"))
    elif way == "ACL user":
        config = own_redis(ACL_LINE, "user default off")
        found = Access(config, {"REDIS_USERNAME": "whisper", "REDIS_PASSWORD": SECRET})
    else:
        config = own_redis(f"requirepass {SECRET}")
        found = Access(config, {"REDIS_PASSWORD": SECRET})
        if way == "password in the URL":
            found = Access(dataclasses.replace(config, url=f"redis://:{SECRET}@127.0.0.1:{config.port}"))
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    if way != "TLS":
        yield found
        return
    with tls_end(config.port, tmp_path) as port:
        url = f"rediss://:{SECRET}@localhost:{port}?ssl_ca_certs={tmp_path}/ca.crt"
        monkeypatch.delenv("REDIS_PASSWORD")
        yield Access(dataclasses.replace(config, url=url))


@pytest.mark.parametrize("access", WAYS, indirect=True)
def test_samples_go_the_whole_way(access: Access) -> None:
    """Every command that the two ends ever use: with the README's ACL line none of them may be forbidden."""
    config = access.config
    announcement = announce_producer(config)
    writer = SampleWriter(config, CARD)
    writer.open()
    announcement.close()
    assert writer.push(0, payloads(0, 40, 50_000), rejected=["row 3: unreadable"]) == 40
    trained = SimpleNamespace(value=0)
    reader = SampleReader(config, "trainer-1", trained, threading.Event())
    assert reader.wait_for_plan() == CARD
    reader.attach(0)
    assert reader.take(0, 16) == payloads(0, 16, 50_000)
    trained.value = 16
    reader.trim(16)
    reader.commit(16)
    assert reader.take(16, 8) == payloads(16, 24, 50_000)
    again = SampleReader(config, "trainer-2", trained, threading.Event())
    again.attach(16)
    assert again.take(16, 24) == payloads(16, 40, 50_000)
    again.attach(3)  # back beyond what is there
    assert writer.wait_at_end(40) == 3
    assert writer.push(3, payloads(3, 40, 50_000)) == 40
    again.attach(30)  # ahead of what was taken
    assert again.take(30, 10) == payloads(30, 40, 50_000)
    status = writer.status()
    assert (status.position, status.tail, status.rejected) == (30, 40, 1)
    finishing = threading.Thread(target=again.finish)
    finishing.start()
    with pytest.raises(RunFinished):
        writer.wait_at_end(40)
    writer.close()
    finishing.join(10)
    assert open_queue(config).clear()["plans"] == 1
    assert SECRET not in config.address


def files_with(secret: str, folder: Path) -> list[Path]:
    """The files below a folder that hold a text, whatever they are."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def command_lines(*pids: int) -> str:
    """What `ps` shows of the processes and their children."""
    family = [member for pid in pids for member in psutil.Process(pid).children(recursive=True)]
    return "\n".join(" ".join(member.cmdline()) for member in family)


def assert_told_without_secrets(arguments: list[str], remedy: str) -> None:
    """A program that fails says why, and not with which password."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert remedy in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("access", ["ACL user", "TLS"], indirect=True)
def test_both_scripts_work_and_leave_no_password_anywhere(access: Access, make_run: Callable[..., Run]) -> None:
    """Not in a log, an error, a saved configuration, a checkpoint, a model card, or a process list."""
    run = make_run("run", model__save_steps=5, data__num_workers=2)
    run.settings |= access.flags
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (producer, trainer):
        wait_until(lambda: producer.workers or not producer.running)
        assert SECRET not in command_lines(producer.pid, trainer.pid)
        assert producer.finish()[0] == 0
        assert trainer.finish()[0] == 0, trainer.err
    assert run.trained_positions() == list(range(40))
    assert SECRET not in run.manage("status")
    run.manage("clear")
    written = [path.name for path in run.folder.rglob("*") if path.is_file()]
    assert {"producer_config.json", "trainer_config.json", "training_args.bin", "trainer_state.json"} <= set(written)
    assert json.loads((run.output_dir / "trainer_config.json").read_text())["redis"]["namespace"] == "whisper"
    assert files_with(SECRET, run.folder) == []
    assert files_with("whisper", run.folder), "the search itself must work"


def test_an_embedded_server_with_a_password_shows_it_nowhere(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", SECRET)
    run = make_run("run")
    assert run.finish(PRODUCER)[0] == 0
    pid = embedded_pid(run.redis_config)
    assert pid is not None
    assert SECRET not in " ".join(psutil.Process(pid).cmdline())
    assert files_with(SECRET, runtime_folder(run.redis_config.port)) == []
    assert json.loads(run.manage("status"))["tail"] == 40
    assert files_with(SECRET, run.folder) == []
    monkeypatch.delenv("REDIS_PASSWORD")
    assert_told_without_secrets(["redis_manager.py", "status", run.flags()[0]], "REDIS_PASSWORD")


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [
        ("--redis.url=redis://:open-sesame@127.0.0.1:1", "no redis listens at redis://127.0.0.1:1"),
        ("--redis.url=redis://:open-sesame@127.0.0.1:port", "redis.url (redis://127.0.0.1:port)"),
        ("--redis.url=unix:///nowhere?password=open-sesame", "no redis listens at unix:///nowhere"),
        ("--redis.url=redis://:un/open-sesame@127.0.0.1:1", "redis.url (redis://…)"),
        ("--redis.url=redis://:un?open-sesame@127.0.0.1:1", "redis://…"),
        ("--redis.url=redis://:un#open-sesame@127.0.0.1:1", "redis://…"),
        ("--redis.url=redis://:open-sesame\u2100@127.0.0.1:1", "redis.url (redis://127.0.0.1:1)"),
        ("--redis.url=redis://:open-sesame@[127.0.0.1:1", "redis.url (redis://[127.0.0.1:1)"),
        ("--redis.url=redis://127.0.0.1:1?password=open-sesame", "no redis listens at redis://127.0.0.1:1:"),
        ("--redis.url=http://:open-sesame@127.0.0.1:1", "expected"),
        ("--redis.urll=redis://:open-sesame@127.0.0.1:1", "--redis.urll=redis://127.0.0.1:1"),
    ],
)
def test_an_address_that_cannot_work_is_told_without_its_password(flag: str, remedy: str) -> None:
    assert_told_without_secrets(["redis_manager.py", "status", flag], remedy)


@pytest.mark.parametrize("access", ["password in the URL"], indirect=True)
def test_a_wrong_password_is_told_without_it(access: Access) -> None:
    wrong = access.config.url.replace(SECRET, f"{SECRET}-not")
    assert_told_without_secrets(["redis_manager.py", "status", f"--redis.url={wrong}"], "user and password")
