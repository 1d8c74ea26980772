"""Workers of a Dask cluster make the same stream as those of this machine, whatever happens to them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import pytest
import redis
import soundfile

from common.process_executor import WorkerError
from producing import dask_plugin, dask_workers
from producing.dask_workers import SchedulerError, check_python
from producing.recipe import StreamRecipe
from producing.sample_worker import Chunk
from producing.worker_pool import SampleMaker, WorkerPool
from tests.conftest import tone
from tests.runs import DIGITS
from tests.servers import find_free_port

ROOT = Path(__file__).parents[2]
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


def on(cluster: Cluster, recipe: StreamRecipe) -> StreamRecipe:
    """The recipe with the cluster as its executor."""
    data = dataclasses.replace(recipe.config.data, executor=cluster.address)
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, data=data))


def never() -> None:
    """A heartbeat nobody listens to."""


def stream(recipe: StreamRecipe, after: Callable[[int], None] = lambda position: None) -> list[Chunk]:
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
    assert doomed.wait() == -signal.SIGKILL
    assert survivor.poll() is None


def test_neither_the_cache_folder_nor_the_project_need_be_where_the_workers_are(make_recipe, cluster, tmp_path):
    recipe = make_recipe({"chunk_size": 10})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    shutil.rmtree(tmp_path / "cache")
    cluster.start_worker()
    assert payloads(stream(on(cluster, recipe))) == expected
    with cluster.client() as client:
        places = client.run(lambda: __import__("producing.sample_worker").__file__)
        assert all(dask_plugin.CODE_MARK in place for place in places.values())


def test_workers_that_join_later_are_used(make_recipe, cluster, caplog, monkeypatch):
    monkeypatch.setattr(dask_workers, "LOOK_S", 0.1)
    caplog.set_level("INFO")
    recipe = make_recipe({"epochs": 40, "chunk_size": 10})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    made, position, beats = [], 0, []

    def start_first() -> None:
        if not beats:
            cluster.start_worker()
        beats.append(1)

    with WorkerPool(on(cluster, recipe), 1) as pool:
        while position < len(recipe.plan):
            made += pool.chunk_at(position, start_first).payloads
            position = len(made)
            if position == 100:
                cluster.start_worker()
                cluster.wait_for_workers(2)
            if position == 600:
                assert pool._workers.slots == 2
                cluster.workers[0].kill()
    assert beats, "the first chunk was there before any worker"
    assert "has no workers; start some on each machine: dask worker" in caplog.text
    assert [n for n in (0, 1, 2) if f"{n} worker threads" in caplog.text] == [0, 1, 2]
    assert made == expected


def test_chunks_may_begin_anywhere(make_recipe, cluster):
    recipe = make_recipe({"chunk_size": 7})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    cluster.start_worker()
    with WorkerPool(on(cluster, recipe), 1) as pool:
        for position in (50, 57, 3, 119, 0):
            assert pool.chunk_at(position, never).payloads == expected[position : position + 7]


def test_several_threads_of_a_worker_do_not_disturb_each_other(make_recipe, cluster):
    recipe = make_recipe({"epochs": 3, "chunk_size": 3}, {"multiple_aug": True})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    cluster.start_worker("--nthreads", "4")
    assert payloads(stream(on(cluster, recipe))) == expected


def test_recordings_that_fail_late_are_replaced_as_they_are_here(make_recipe, cluster, tmp_path):
    recipe = make_recipe({"max_rejected_fraction": 0.5, "chunk_size": 8})
    for number in (3, 5, 6):
        (tmp_path / "clips" / f"{number}.flac").write_bytes(b"not audio any more")
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
    cluster.start_worker()
    chunks = stream(on(cluster, recipe))
    assert payloads(chunks) == expected.payloads
    assert sorted(line for chunk in chunks for line in chunk.rejected) == sorted(expected.rejected)
    assert sum(sum(chunk.augmentations.values()) for chunk in chunks) == len(recipe.plan)


def test_when_nothing_can_be_decoded_the_run_stops(make_recipe, cluster, tmp_path):
    recipe = make_recipe()
    shutil.rmtree(tmp_path / "clips")
    cluster.start_worker()
    with pytest.raises(WorkerError, match=r"disk still mounted.*file not found"):
        stream(on(cluster, recipe))


def test_other_noise_files_than_the_producers_are_refused(make_recipe, cluster, tmp_path):
    soundfile.write(tmp_path / "noise.wav", tone(2.0), 16000)
    recipe = make_recipe(augmentation={"bg_noise_file_list": [str(tmp_path / "noise.wav")]})
    soundfile.write(tmp_path / "noise.wav", tone(1.0), 16000)
    cluster.start_worker()
    with pytest.raises(WorkerError, match=r"Dask worker tcp://.*background noise here is not the producer's.*copy"):
        stream(on(cluster, recipe))


class NoEncoder:
    """Fails on every transcript."""

    def __reduce__(self):
        return str, ()  # a str's `encode` takes other arguments


def test_an_unexpected_exception_is_told_with_recording_and_position(make_recipe, cluster):
    recipe = on(cluster, make_recipe())
    cluster.start_worker()
    place = r"Dask worker tcp://\S+ on \S+: cannot make the sample at position 0 \(recording r\d+, .*\): TypeError"
    with pytest.raises(WorkerError, match=place):
        stream(dataclasses.replace(recipe, encoder=NoEncoder()))


def test_a_transform_of_ones_own_must_be_where_the_workers_are(make_recipe, cluster, tmp_path, monkeypatch):
    (tmp_path / "halving.py").write_text(HALVING)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = make_recipe({"chunk_size": 10}, {"extra_transforms": ["halving.Halve", "audiomentations.Reverse"]})
    cluster.start_worker()
    with pytest.raises(WorkerError, match=r"Dask worker tcp://.*cannot import halving.*PYTHONPATH, where the workers"):
        stream(on(cluster, recipe))
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    with cluster.client() as client:
        client.run(lambda folder: __import__("sys").path.append(folder), str(tmp_path))
    assert payloads(stream(on(cluster, recipe))) == expected


HALVING = """
class Halve:
    def __call__(self, samples, sample_rate):
        return samples / 2
"""


class Deadly:
    """Kills every worker that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_task_that_kills_worker_after_worker_ends_the_run_with_a_reason(make_recipe, cluster):
    recipe = on(cluster, make_recipe())
    cluster.start_worker("--nanny")  # it starts another worker process for one that died
    with pytest.raises(WorkerError, match=r"4 Dask workers in a row died.*--memory-limit"):
        stream(dataclasses.replace(recipe, encoder=Deadly()))


def test_other_versions_of_the_packages_are_refused(make_recipe, cluster):
    recipe = make_recipe()
    plugin = dask_plugin.SamplePlugin(recipe.for_workers())
    plugin._versions["numpy"] = "1.0"
    cluster.start_worker()
    with cluster.client() as client:
        client.register_plugin(plugin, name="old")
        answer = client.submit(dask_plugin.task_function("old"), dask_plugin.pack(recipe.tasks(0, 2))).result()
    assert "numpy 2" in answer
    assert "(the producer: 1.0)" in answer
    assert "pip install -r requirements-cluster.txt" in answer


def test_the_packages_that_decide_the_bytes_are_installed_and_those_in_use():
    assert "none" not in dask_plugin.versions(dask_plugin.deciding_packages(["audiomentations.Gain"])).values()
    assert "audiomentations" not in dask_plugin.deciding_packages(["my_module.Gain"])
    assert "miniaudio" in dask_plugin.PACKAGES


def test_a_cluster_with_another_python_is_refused(cluster):
    cluster.start_worker()
    cluster.wait_for_workers(1)
    with cluster.client() as client:
        versions = client.get_versions()
    check_python(versions)
    place, facts = next(iter(versions["workers"].items()))
    facts["host"]["python"] = "3.9.1.final.0"
    with pytest.raises(SchedulerError, match=rf"{place} of the Dask cluster has Python 3.9.1, the producer 3\.\d+"):
        check_python(versions)


def test_workers_take_up_a_producers_new_code_and_never_mix_two_versions(make_recipe, cluster, monkeypatch):
    recipe = on(cluster, make_recipe({"chunk_size": 10, "epochs": 10}))
    expected = SampleMaker(recipe).make_chunk(0, 20).payloads
    cluster.start_worker()
    code = io.BytesIO(dask_plugin.project_code())
    with zipfile.ZipFile(code, "a") as archive:
        archive.writestr("novelty.py", "")
    other = dataclasses.replace(recipe.config.redis, namespace="other")
    newer = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, redis=other))
    with WorkerPool(recipe, 1) as old:
        assert old.chunk_at(0, never).payloads == expected[:10]
        monkeypatch.setattr(dask_plugin, "project_code", code.getvalue)
        with WorkerPool(newer, 1) as new:
            assert new.chunk_at(0, never).payloads == expected[:10]
            assert new.chunk_at(10, never).payloads == expected[10:]
            with pytest.raises(WorkerError, match="another version of the project's code from another producer"):
                old.chunk_at(200, never)


def test_a_scheduler_that_is_started_again_gets_everything_once_more(make_recipe, cluster, monkeypatch):
    monkeypatch.setattr(dask_workers, "RETRY_S", 0.2)
    recipe = make_recipe({"epochs": 10, "chunk_size": 10})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    cluster.start_worker()
    cluster.wait_for_workers(1)

    def restart_scheduler(position: int) -> None:
        if position == 100:
            cluster.scheduler.kill()
            cluster.scheduler.wait()
            cluster.start_scheduler()
            cluster.start_worker()

    assert payloads(stream(on(cluster, recipe), restart_scheduler)) == expected


def test_a_scheduler_that_has_forgotten_the_producer_is_told_again(make_recipe, cluster):
    recipe = make_recipe({"epochs": 10, "chunk_size": 10})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    cluster.start_worker()
    cluster.wait_for_workers(1)

    def forget(position: int) -> None:
        if position == 100:
            with cluster.client() as client:
                name = next(
                    name
                    for name in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
                    if "whisper" in name
                )
                client.unregister_worker_plugin(name)

    assert payloads(stream(on(cluster, recipe), forget)) == expected


def test_a_cluster_that_someone_restarts_goes_on(make_recipe, cluster):
    recipe = make_recipe({"epochs": 10, "chunk_size": 10})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    cluster.start_worker("--nanny")
    cluster.wait_for_workers(1)

    def restart(position: int) -> None:
        if position == 100:
            with cluster.client() as client:
                client.restart()

    assert payloads(stream(on(cluster, recipe), restart)) == expected


def test_a_scheduler_that_stays_away_ends_the_run_with_a_reason(make_recipe, cluster, monkeypatch):
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    monkeypatch.setattr(dask_workers, "RECONNECT_S", 1.0)
    recipe = on(cluster, make_recipe({"epochs": 10, "chunk_size": 10}))
    cluster.start_worker()
    with pytest.raises(SchedulerError, match=r"no Dask scheduler answers at data.executor tcp://.*dask scheduler"):
        stream(recipe, lambda position: cluster.scheduler.kill() if position == 100 else None)


def test_the_heartbeat_goes_on_while_workers_are_stopped(make_recipe, cluster):
    beats = []
    with WorkerPool(on(cluster, make_recipe({"chunk_size": 1})), 1) as pool:
        worker = cluster.start_worker()
        pool.chunk_at(0, never)
        worker.send_signal(signal.SIGSTOP)
        pool.chunk_at(100, lambda: beats.append(worker.send_signal(signal.SIGCONT)))
    assert beats


def test_a_pool_that_is_left_leaves_nothing_on_the_scheduler(make_recipe, cluster):
    cluster.start_worker()
    with WorkerPool(on(cluster, make_recipe({"epochs": 10})), 1) as pool:
        pool.chunk_at(0, never)
    assert what_is_left(cluster) == ([], [])


def what_is_left(cluster: Cluster) -> tuple[list[str], list[str]]:
    """Tasks and plugins that the scheduler knows."""
    with cluster.client() as client:
        left: tuple[list[str], list[str]] = client.run_on_scheduler(
            lambda dask_scheduler: (
                list(dask_scheduler.tasks),
                [n for n in dask_scheduler.worker_plugins if "whisper" in n],
            )
        )
    return left


def test_workers_of_this_machine_do_not_load_dask():
    code = "import sys, producing.worker_pool; print([name for name in ('dask', 'distributed') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def producer(redis_config, checkpoint: Path, folder: Path, **changes: object) -> subprocess.Popen[str]:
    """The producer script, over the first 40 spoken digits; `changes` are flags with __ for the dot."""
    lines = (DIGITS / "train" / "metadata.csv").read_text(encoding="utf-8").splitlines()[:41]
    shutil.copytree(DIGITS / "train", folder / "digits", dirs_exist_ok=True)
    (folder / "digits" / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = {
        "redis.port": redis_config.port, "redis.max_memory_gb": redis_config.max_memory_gb,
        "redis.sleep_seconds": 0.2, "data.train_manifest": folder / "digits", "data.cache_dir": folder / "cache",
        "data.num_workers": 1, "data.epochs": 2, "audio_augmentation.far_field_rooms": 1,
        "model.model_name": checkpoint, "model.language": "English", "model.output_dir": folder / "out",
    }  # fmt: skip
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    return subprocess.Popen(
        [sys.executable, "prepro_add2radis.py", *(f"--{name}={value}" for name, value in flags.items())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_producer_script_fills_the_queue_from_a_cluster(redis_config, tiny_checkpoint, tmp_path, cluster):
    cluster.start_worker()
    for namespace, executor in (("here", ""), ("there", cluster.address)):
        with producer(
            redis_config, tiny_checkpoint, tmp_path, redis__namespace=namespace, data__executor=executor
        ) as script:
            _, err = script.communicate(timeout=90)
        assert script.returncode == 0, err
        assert "Traceback" not in err
    with redis.Redis(port=redis_config.port) as client:
        here, there = (client.lrange(f"{namespace}:samples", 0, -1) for namespace in ("here", "there"))
    assert len(here) == 40 * 2 * 2
    assert there == here
    assert what_is_left(cluster) == ([], [])


def test_a_producer_that_is_told_to_stop_leaves_nothing_on_the_scheduler(
    redis_config, tiny_checkpoint, tmp_path, cluster
):
    cluster.start_worker()
    with producer(
        redis_config, tiny_checkpoint, tmp_path,
        data__executor=cluster.address, data__epochs=500, redis__max_memory_gb=0.02, redis__namespace="full",
    ) as script:  # fmt: skip
        assert script.stderr is not None
        assert any("waiting for room" in line for line in script.stderr)
        script.terminate()
        _, err = script.communicate(timeout=30)
    assert script.returncode == 143
    assert "Traceback" not in err
    assert what_is_left(cluster) == ([], [])


def test_an_address_without_a_scheduler_is_one_clear_line(redis_config, tiny_checkpoint, tmp_path):
    address = f"tcp://127.0.0.1:{find_free_port()}"
    with producer(redis_config, tiny_checkpoint, tmp_path, data__executor=address) as script:
        _, err = script.communicate(timeout=60)
    assert script.returncode == 2
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"no Dask scheduler answers at data.executor {address}" in errors[0]
