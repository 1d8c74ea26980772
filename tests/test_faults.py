"""Whatever dies or breaks, every position is trained exactly once and in order, by the weights that survive.

Real scripts, a real server, real signals. The long version is `make chaos`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from tests.chaos import Settings, largest_difference, run_chaos
from tests.runs import PRODUCER, TRAINER, Run, Script, ending, trained_positions, wait_until
from tests.servers import FlakyProxy
from training.checkpoints import MARKER

MakeRun = Callable[..., Run]


def stream(run: Run, namespace: str) -> list[bytes]:
    """All that is queued."""
    with redis.Redis(port=run.redis_config.port) as client:
        return client.lrange(f"{namespace}:samples", 0, -1)


def newest_position(run: Run) -> int:
    """Position of the newest complete checkpoint."""
    markers = run.output_dir.glob(f"checkpoint-*/{MARKER}")
    return max(json.loads(marker.read_text())["position"] for marker in markers)


# --- the producer ---


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.long)])
def test_a_producer_killed_many_times_and_its_workers_too_make_the_same_stream(make_run: MakeRun, times: int) -> None:
    run = make_run(data__epochs=40, data__num_workers=2, redis__max_memory_gb=0.1)
    assert run.finish(PRODUCER)[0] == 0
    undisturbed = stream(run, "test")
    assert len(undisturbed) == 40 * 40
    chance, kills, killed_workers = random.Random(1), 0, 0
    while len(stream(run, "other")) < len(undisturbed):
        with ending(run.start(PRODUCER, redis__namespace="other", data__chunk_size=8)) as (producer,):
            before = len(stream(run, "other"))
            wait_until(lambda: len(stream(run, "other")) > before or not producer.running)  # noqa: B023
            if kills < times:
                time.sleep(chance.uniform(0, 0.2))
                if producer.workers:
                    chance.choice(producer.workers).kill()
                    killed_workers += 1
                time.sleep(chance.uniform(0, 0.2))
                producer.kill()
                kills += 1
            else:
                assert producer.finish()[0] == 0
    assert (kills, killed_workers) == (times, times)
    assert stream(run, "other") == undisturbed


# --- the trainer ---


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 6])
def test_a_trainer_killed_at_the_boundaries_of_a_save_goes_on_where_the_last_whole_checkpoint_stands(
    make_run: MakeRun, every: int
) -> None:
    settings = {
        "model__per_device_train_batch_size": 2, "model__gradient_accumulation_steps": 4,
        "model__dataloader_num_workers": 2, "model__save_steps": 1,
    }  # fmt: skip
    run = make_run(recordings=12, **settings)
    command = [sys.executable, "-m", "tests.dying_trainer", str(every), *run.flags()]
    with ending(run.start(PRODUCER), Script(command, run.folder / "dying")) as (_, trainer):
        code, out, err = trainer.finish(280)
    assert code == 0, err[-2000:]
    boundaries = [line for line in out.splitlines() if line.startswith(("before ", "after "))]
    assert sum("torn" in line for line in boundaries) >= 11 // every
    assert sum("micro-batch" in line for line in boundaries) >= 6 // every
    if every == 1:
        for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "complete.json.tmp"):
            assert any(line.endswith(f", {name} torn") for line in boundaries), name
        assert boundaries[-2:] == ["before the commit", "after the commit"]
    assert run.trained_positions() == list(range(24))
    calm = make_run("calm", recordings=12, **settings)
    with ending(calm.start(PRODUCER)):
        assert calm.finish(TRAINER)[0] == 0
    assert largest_difference(run.output_dir, calm.output_dir) == 0


@pytest.mark.long
def test_a_run_goes_on_with_other_batches_workers_and_ranks_at_its_position(make_run: MakeRun) -> None:
    run = make_run(recordings=40, data__epochs=2, model__save_steps=2)
    two_ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    sessions: list[tuple[tuple[str, ...], dict[str, object]]] = [
        ((), {"model__per_device_train_batch_size": 3}),
        (two_ranks, {"model__per_device_train_batch_size": 2, "model__dataloader_num_workers": 1}),
        ((), {"model__per_device_train_batch_size": 1, "model__gradient_accumulation_steps": 5,
              "model__dataloader_num_workers": 2}),
    ]  # fmt: skip
    with ending(run.start(PRODUCER)):
        for launcher, changes in sessions:
            before = run.steps_trained()
            with ending(run.start(TRAINER, *launcher, **changes)) as (trainer,):
                wait_until(lambda: run.steps_trained() >= before + 4 or not trainer.running)  # noqa: B023
                assert trainer.running, trainer.err[-2000:]
                # Of several ranks only one is killed: the launcher then ends the others.
                victims = [each for each in trainer.family() if TRAINER in each.cmdline()[1:3]]
                victims[-1].kill()
                wait_until(lambda: not trainer.running, timeout_s=60)
        code, _, err = run.finish(TRAINER, model__per_device_train_batch_size=7)
    assert code == 0, err
    ranks = {json.loads(line)["rank"] for line in run.record.read_text().splitlines()}
    assert ranks == {0, 1}
    assert run.trained_positions() == list(range(160))


# --- redis ---


@pytest.mark.parametrize(
    "alive",
    ["producer", pytest.param("trainer", marks=pytest.mark.long), pytest.param("neither", marks=pytest.mark.long)],
)
def test_redis_killed_while_full_comes_back_empty_and_the_run_goes_on(make_run: MakeRun, alive: str) -> None:
    run = make_run(
        recordings=40, data__epochs=5, data__feature_dtype="float32", redis__max_memory_gb=0.02,
        model__save_steps=3, model__per_device_train_batch_size=8,
    )  # fmt: skip
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (producer, trainer):
        wait_until(lambda: run.steps_trained() >= 4)
        psutil.Process(trainer.pid).suspend()  # a moment without one who takes: the queue fills up
        wait_until(lambda: "waiting for room" in producer.err)
        full = run.status()
        assert full["tail"] < 400
        if alive != "producer":
            producer.kill()
        if alive != "trainer":
            trainer.kill()
        run.signal_redis(signal.SIGKILL)
        psutil.Process(trainer.pid).resume()
        if alive != "producer":
            producer = run.start(PRODUCER)
        if alive != "trainer":
            trainer.wait()
            trainer = run.start(TRAINER)
        with ending(producer, trainer):
            code, _, err = trainer.finish()
            assert code == 0, err
            assert producer.finish()[0] == 0
    assert run.trained_positions() == list(range(400))
    assert full["used_memory_peak_bytes"] <= full["limit_bytes"]


@pytest.mark.long
def test_redis_that_hangs_for_15_s_is_waited_for(make_run: MakeRun) -> None:
    run = make_run(recordings=40, data__epochs=5, model__per_device_train_batch_size=8)
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (producer, trainer):
        wait_until(lambda: run.steps_trained() >= 3)
        run.signal_redis(signal.SIGSTOP)
        time.sleep(15)
        run.signal_redis(signal.SIGCONT)
        code, _, err = trainer.finish()
        assert code == 0, err
        assert producer.finish()[0] == 0
        assert "does not answer" in err
    assert run.trained_positions() == list(range(400))


# --- the network ---


def test_connections_that_break_all_the_time_lose_and_repeat_nothing(make_run: MakeRun) -> None:
    run = make_run(recordings=40, data__epochs=2, data__chunk_size=8, model__dataloader_num_workers=1)
    assert run.manage("start")
    with FlakyProxy(run.redis_config, every=11) as proxy:
        through = {"redis__port": proxy.port, "redis__embedded": False}
        with ending(run.start(PRODUCER, **through), run.start(TRAINER, **through)) as (producer, trainer):
            code, _, err = trainer.finish()
            assert code == 0, err
            assert producer.finish()[0] == 0
    assert proxy.broken >= 10
    assert run.trained_positions() == list(range(160))


# --- two of a kind ---


def test_a_second_trainer_on_the_same_folder_is_refused_and_the_first_goes_on(make_run: MakeRun) -> None:
    run = make_run(recordings=40, data__epochs=2)
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (_, first):
        wait_until(lambda: run.steps_trained() >= 1)
        psutil.Process(first.pid).suspend()  # so that it is still there when the second comes
        code, _, err = run.finish(TRAINER)
        psutil.Process(first.pid).resume()
        assert code == 2
        assert f"pid {first.pid}) is training into {run.output_dir}" in err.splitlines()[-1]
        assert first.finish()[0] == 0
    assert run.trained_positions() == list(range(160))


@pytest.mark.long
def test_a_second_trainer_with_a_folder_of_its_own_takes_over_and_the_first_is_told(make_run: MakeRun) -> None:
    run = make_run(recordings=40, data__epochs=2)
    other = run.folder / "other"
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (producer, first):
        wait_until(lambda: run.steps_trained() >= 1)
        psutil.Process(first.pid).suspend()
        with ending(run.start(TRAINER, model__output_dir=other)) as (second,):
            wait_until(lambda: (other / run.record.name).exists() and (other / run.record.name).read_text())
            psutil.Process(first.pid).resume()
            code, _, err = first.finish()
            assert code == 2
            assert "another trainer" in err.splitlines()[-1]
            assert "has taken over namespace 'test'" in err.splitlines()[-1]
            assert second.finish()[0] == 0
        assert producer.finish()[0] == 0
    assert trained_positions(other / run.record.name) == list(range(160))


@pytest.mark.long
def test_a_second_producer_is_refused_and_the_run_is_right(make_run: MakeRun) -> None:
    run = make_run(recordings=40, data__epochs=50, redis__max_memory_gb=0.02, model__max_steps=20)
    with ending(run.start(PRODUCER)) as (first,):
        wait_until(lambda: "waiting for room" in first.err)
        code, _, err = run.finish(PRODUCER)
        assert code == 2
        assert "already feeds namespace 'test'" in err.splitlines()[-1]
        assert run.finish(TRAINER)[0] == 0
        assert first.finish()[0] == 0
    assert run.trained_positions() == list(range(80))


# --- signals ---


@pytest.mark.parametrize(
    ("state", "number"),
    [
        ("waiting", signal.SIGTERM),
        pytest.param("without a server that answers", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("busy", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("busy", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("waiting", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("without a server that answers", signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_both_scripts_with_a_whole_checkpoint_and_no_orphan(
    make_run: MakeRun, state: str, number: signal.Signals
) -> None:
    run = make_run(recordings=40, data__epochs=20, redis__max_memory_gb=0.02, model__dataloader_num_workers=1)
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (producer, trainer):
        wait_until(lambda: run.steps_trained() >= 3)
        if state == "waiting":
            psutil.Process(producer.pid).suspend()
            wait_until(lambda: run.status()["depth"] < 4)
        elif state != "busy":
            run.signal_redis(signal.SIGSTOP)
        os.killpg(trainer.pid, number)  # a terminal signals the whole group
        assert_ends(trainer, number)
        assert newest_position(run) == 4 * run.steps_trained() == len(run.trained_positions())
        if state == "waiting":
            psutil.Process(producer.pid).resume()
            wait_until(lambda: "waiting for room" in producer.err)
        os.killpg(producer.pid, number)
        assert_ends(producer, number)
        run.signal_redis(signal.SIGCONT)


def assert_ends(script: Script, number: signal.Signals) -> None:
    """Within 30 s, with the signal's exit code, a tidy log and no process left."""
    family = script.family()
    code = script.wait(30)
    assert code == 128 + number, script.err[-2000:]
    assert "Traceback" not in script.err
    assert not psutil.wait_procs(family, timeout=5)[1]


# --- everything at random ---


def test_a_short_run_with_random_faults_loses_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    report = run_chaos(Settings(seed=3, faults=5), tmp_path, tiny_checkpoint, print)
    assert report.good, report
    assert report.faults.total() == 5


def test_the_check_finds_what_plain_pops_lose(make_run: MakeRun) -> None:
    """The control: the same faults and the same check, and a trainer that reads the list as most queues are read."""
    run = make_run(recordings=40, model__save_steps=5)
    plain = ("-m", "tests.plain_protocol")
    with ending(run.start(PRODUCER)):
        with ending(run.start(TRAINER, *plain)) as (trainer,):
            wait_until(lambda: run.steps_trained() >= 8)
            trainer.kill()
        code, _, err = run.finish(TRAINER, *plain)
        assert code == 2
        assert "samples are missing" in err.splitlines()[-1]
    trained = run.trained_positions()
    assert set(range(80)) - set(trained)
