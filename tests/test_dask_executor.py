"""Workers of a Dask cluster make the same stream as those of this machine, whatever happens to them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import pytest

from sample_worker import Chunk
from tests.conftest import find_free_port
from worker_pool import Recipe, SampleMaker, WorkerPool

DASK = Path(sys.executable).with_name("dask")


class Cluster:
    """A scheduler and workers, as `dask scheduler` and `dask worker` start them, far from this project's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.address = folder, f"tcp://127.0.0.1:{find_free_port()}"
        self._processes = contextlib.ExitStack()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start_scheduler()

    def start_scheduler(self) -> None:
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")

    def start_worker(self, *options: str) -> subprocess.Popen[bytes]:
        worker = self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", *options
        )
        self.workers.append(worker)
        return worker

    def wait_for_workers(self, count: int) -> None:
        with self.client() as client:
            client.wait_for_workers(count, timeout=30)

    def close(self) -> None:
        self._processes.close()

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        folder = self._folder / f"{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        log = (folder / "log").open("wb")
        process = subprocess.Popen([DASK, *command], cwd=folder, env=environment, stdout=log, stderr=log)
        self._processes.callback(log.close)
        self._processes.callback(process.wait)
        self._processes.callback(process.kill)
        return process

    def client(self) -> distributed.Client:
        return distributed.Client(self.address, set_as_default=False, timeout=20)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler that runs, without workers."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder)
    yield cluster
    cluster.close()


def on(cluster: Cluster, recipe: Recipe) -> Recipe:
    """The recipe with the cluster as its executor."""
    data = dataclasses.replace(recipe.config.data, executor=cluster.address)
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, data=data))


def never() -> None:
    """A heartbeat nobody listens to."""


def stream(recipe: Recipe, after: Callable[[int], None] = lambda position: None) -> list[Chunk]:
    """The whole stream; `after` is called with the position after each chunk."""
    chunks, position = [], 0
    with WorkerPool(recipe, 1) as pool:
        while position < len(recipe.plan):
            chunks.append(pool.chunk_at(position, never))
            position += len(chunks[-1].payloads)
            after(position)
    return chunks


def payloads(chunks: list[Chunk]) -> list[bytes]:
    return [payload for chunk in chunks for payload in chunk.payloads]


def test_two_workers_one_of_them_killed_make_the_same_bytes(make_recipe, cluster):
    recipe = make_recipe({"epochs": 10, "chunk_size": 10})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    doomed, survivor = cluster.start_worker(), cluster.start_worker()
    cluster.wait_for_workers(2)

    def kill_one(position: int) -> None:
        if position == 100:
            doomed.kill()

    assert payloads(stream(on(cluster, recipe), kill_one)) == expected
    assert doomed.returncode == doomed.wait() == -signal.SIGKILL
    assert survivor.poll() is None


def test_a_scheduler_that_is_started_again_gets_everything_once_more(make_recipe, cluster, monkeypatch):
    monkeypatch.setattr(dask_workers, "RETRY_S", 0.2)
    recipe = make_recipe({"epochs": 10, "chunk_size": 10})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    worker = cluster.start_worker()
    cluster.wait_for_workers(1)

    def kill_scheduler(position: int) -> None:
        if position == 100:
            cluster.scheduler.kill()
            cluster.scheduler.wait()
            print("worker", time.time())
            time.sleep(3)
            print(worker.poll())
            cluster.start_scheduler()
            cluster.start_worker()

    assert payloads(stream(on(cluster, recipe), kill_scheduler)) == expected
