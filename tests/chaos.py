"""Random faults in both scripts and their Redis during one run, and what comes of it.

    python -m tests.chaos                        # `make chaos`: 60 faults
    python -m tests.chaos --seed 7 --faults 200  # the same seed makes the same faults with the same pauses
    python -m tests.chaos --protocol plain       # the control: plain LPOP and RPUSH with retries, which lose samples

Prints a line per fault and a report; exits with 1 when a sample was lost, repeated or out of order, when the memory
limit was exceeded, a script ended as it should not, or the weights differ from those of a run without faults.
"""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import redis
import safetensors.numpy
import tyro

from examples.make_tiny_checkpoint import make_tiny_checkpoint
from tests.runs import DIGITS, PRODUCER, TRAINER, Run, Script, ending, wait_until
from tests.servers import find_free_port

SAMPLES_PER_FAULT = 60
"""A fault comes after so many trained samples at the latest, so that the plan lasts for all of them."""
BATCH = 4
STOP_S = 30.0
"""How long a script may take to end after a signal, in seconds."""
SIGNALLED = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass
class Settings:
    """What the command line sets."""

    seed: int = 0
    """Chooses the faults and the pauses between them. 0: a new one."""
    faults: int = 60
    """Faults to make."""
    protocol: Literal["ours", "plain"] = "ours"
    """plain: the control, with plain LPOP by position-blind trainers. It must lose samples."""
    folder: Path | None = None
    """Where logs and checkpoints go, and stay. None: a temporary folder."""


@dataclass
class Report:
    """What came of a run with faults."""

    seed: int
    faults: Counter[str]
    planned: int
    trained: list[int]
    """Positions behind the final weights, in order."""
    peak_bytes: int
    """Highest used_memory of any of the servers."""
    limit_bytes: int
    difference: float
    """Largest difference of a weight to the run without faults."""
    failures: list[str] = field(default_factory=list)
    """Scripts that ended as they should not, or not at all."""

    @property
    def lost(self) -> int:
        """Positions that were never trained."""
        return len(set(range(self.planned)) - set(self.trained))

    @property
    def duplicated(self) -> int:
        """Positions that were trained more than once."""
        return len(self.trained) - len(set(self.trained))

    @property
    def in_order(self) -> bool:
        """Whether positions were trained in ascending order."""
        return self.trained == sorted(self.trained)

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        right = self.lost == 0 and self.duplicated == 0 and self.in_order and self.difference == 0
        return right and self.peak_bytes <= self.limit_bytes and not self.failures

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} x {name}" for name, count in self.faults.most_common())
        lines = [
            f"faults: {self.faults.total()} ({kinds})",
            f"samples: {self.planned}   lost: {self.lost}   duplicated: {self.duplicated}   in order: {self.in_order}",
            f"redis memory: peak {self.peak_bytes / 2**20:.1f} MB, limit {self.limit_bytes / 2**20:.1f} MB",
            f"largest difference of a weight to the run without faults: {self.difference}",
            *(f"failure: {failure}" for failure in self.failures),
            f"repeat with --seed {self.seed} --faults {self.faults.total()}",
        ]
        return "\n".join(lines)


class Chaos:
    """A run, and the faults that are made in it."""

    def __init__(self, run: Run, seed: int, launcher: tuple[str, ...] = ()) -> None:
        """
        Args:
            run: its flags.
            seed: chooses the faults.
            launcher: words between the interpreter and a script.
        """
        self.run, self.launcher = run, launcher
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.peak_bytes, self.limit_bytes = 0, 0
        self.producer, self.trainer = self._start(PRODUCER), self._start(TRAINER)

    def make_faults(self, count: int, log: Callable[[str], None]) -> None:
        """Makes faults, with pauses of up to 6 s; what is down starts again at once, or after the next fault."""
        started = time.monotonic()
        for number in range(count):
            self._pause((number + 1) * SAMPLES_PER_FAULT)
            if self.finished:
                self.failures.append(f"the run was over after {number} faults")
                return
            fault = self.random.choice(FAULTS)
            name = fault.__name__.replace("_", " ")
            fault(self)
            self.done[name] += 1
            self.look()
            log(f"{time.monotonic() - started:6.1f} s  {number + 1:3}  {name:32} step {self.run.steps_trained()}")
            if self.random.random() < 0.85:
                self.restart()

    def finish(self, timeout_s: float = 300) -> None:
        """Lets the run come to its end."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self.failures:
            self.restart()
            self.look()
            if self.finished and not self.producer.running:
                return
            time.sleep(0.5)
        if not self.failures:
            self.failures.append(f"the run did not end in {timeout_s:.0f} s")

    def end(self) -> None:
        """Ends both scripts whatever they do."""
        for script in (self.trainer, self.producer):
            script.end()

    @property
    def finished(self) -> bool:
        """Whether the trainer has ended well."""
        return self.trainer.poll() == 0

    def restart(self) -> None:
        """Starts what is down, unless the run is over."""
        for script in (self.producer, self.trainer):
            code = script.poll()
            if code == 2 and "is finished" in script.err:  # a producer that came after the trainer's last word
                continue
            if code not in (None, 0, -signal.SIGKILL, *SIGNALLED.values()):
                self.failures.append(f"{script.name} ended with {code}: {script.err.splitlines()[-1:]}")
        if not self.finished and not self.producer.running:
            self.producer = self._start(PRODUCER)
        if not self.finished and not self.trainer.running:
            self.trainer = self._start(TRAINER)

    def look(self) -> None:
        """Notes the server's memory."""
        try:
            with redis.Redis(port=self.run.redis_config.port, socket_timeout=2) as client:
                memory = client.info("memory")
        except redis.exceptions.RedisError:
            return  # it is down, and its peak with it: it was looked at before each kill
        self.peak_bytes = max(self.peak_bytes, memory["used_memory_peak"])
        self.limit_bytes = memory["maxmemory"]

    def signal(self, script: Script, number: signal.Signals) -> None:
        """Ctrl-C or SIGTERM, as a user would send it to a script that has begun its work: it must end well."""
        if not script.running or "INFO" not in script.err:  # it still imports, and ends as any program does
            return
        script.send_signal(number)
        try:
            code = script.wait(STOP_S)
        except subprocess.TimeoutExpired:
            code = None
        if code not in (SIGNALLED[number], 0):
            self.failures.append(f"after {number.name}: exit code {code}: {script.err.splitlines()[-3:]}")
        left = script.family()
        if left and not _gone_after(left, 5):
            self.failures.append(f"after {number.name}: left behind {left}")

    def freeze(self, pid: int | None) -> None:
        """SIGSTOP for up to 4 s."""
        if pid is None or not psutil.pid_exists(pid):
            return
        process = psutil.Process(pid)
        process.suspend()
        time.sleep(self.random.uniform(0.5, 4))
        process.resume()

    def _start(self, script: str) -> Script:
        return self.run.start(script, *self.launcher)

    def _pause(self, samples: int) -> None:
        """Waits for a while, or until so many samples have been trained."""
        end = time.monotonic() + self.random.uniform(0.2, 6)
        while time.monotonic() < end and not self.finished and self.run.steps_trained() * BATCH < samples:
            time.sleep(0.05)


# --- the faults ---


def kill_the_producer(chaos: Chaos) -> None:
    chaos.producer.kill()
    chaos.producer.wait()


def kill_a_worker(chaos: Chaos) -> None:
    workers = chaos.producer.workers
    if workers:
        chaos.random.choice(workers).kill()


def kill_the_trainer(chaos: Chaos) -> None:
    chaos.trainer.kill()
    chaos.trainer.wait()


def kill_the_trainer_while_it_saves(chaos: Chaos) -> None:
    before = set(chaos.run.output_dir.glob("checkpoint-*"))
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and chaos.trainer.running:
        if set(chaos.run.output_dir.glob("checkpoint-*")) - before:
            break
        time.sleep(0.002)
    time.sleep(chaos.random.uniform(0, 0.1))
    kill_the_trainer(chaos)


def kill_redis(chaos: Chaos) -> None:
    chaos.look()
    chaos.run.signal_redis(signal.SIGKILL)


def kill_both_scripts(chaos: Chaos) -> None:
    kill_the_producer(chaos)
    kill_the_trainer(chaos)


def kill_all_three(chaos: Chaos) -> None:
    kill_redis(chaos)
    kill_both_scripts(chaos)


def end_the_producer_by_sigterm(chaos: Chaos) -> None:
    chaos.signal(chaos.producer, signal.SIGTERM)


def end_the_producer_by_ctrl_c(chaos: Chaos) -> None:
    chaos.signal(chaos.producer, signal.SIGINT)


def end_the_trainer_by_sigterm(chaos: Chaos) -> None:
    chaos.signal(chaos.trainer, signal.SIGTERM)


def end_the_trainer_by_ctrl_c(chaos: Chaos) -> None:
    chaos.signal(chaos.trainer, signal.SIGINT)


def freeze_redis(chaos: Chaos) -> None:
    chaos.freeze(chaos.run.signal_redis(0))


def freeze_the_producer(chaos: Chaos) -> None:
    chaos.freeze(chaos.producer.pid if chaos.producer.running else None)


def freeze_the_trainer(chaos: Chaos) -> None:
    chaos.freeze(chaos.trainer.pid if chaos.trainer.running else None)


def cut_all_connections(chaos: Chaos) -> None:
    for _ in range(20):
        try:
            with redis.Redis(port=chaos.run.redis_config.port, socket_timeout=2) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        except redis.exceptions.RedisError:
            return  # it is down already
        time.sleep(0.02)


def clear_the_queue(chaos: Chaos) -> None:
    chaos.look()
    try:
        with redis.Redis(port=chaos.run.redis_config.port, socket_timeout=2) as client:
            client.flushall()
    except redis.exceptions.RedisError:
        return


FAULTS = [
    kill_the_producer, kill_the_producer, kill_a_worker, kill_a_worker, kill_the_trainer, kill_the_trainer,
    kill_the_trainer_while_it_saves, kill_the_trainer_while_it_saves, kill_redis, kill_redis, kill_both_scripts,
    kill_all_three, end_the_producer_by_sigterm, end_the_producer_by_ctrl_c, end_the_trainer_by_sigterm,
    end_the_trainer_by_ctrl_c, freeze_redis, freeze_the_producer, freeze_the_trainer, cut_all_connections,
    clear_the_queue,
]  # fmt: skip


# --- a run with faults beside one without ---


def run_chaos(settings: Settings, folder: Path, checkpoint: Path, log: Callable[[str], None]) -> Report:
    """Makes the faults in one run, lets it come to its end, and sets it beside an undisturbed one."""
    launcher = ("-m", "tests.plain_protocol") if settings.protocol == "plain" else ()
    epochs = (settings.faults + 10) * SAMPLES_PER_FAULT // 80 + 1
    made = {}
    for name in ("disturbed", "calm"):
        (folder / name).mkdir()
        made[name] = Run(
            folder / name, checkpoint, find_free_port(), recordings=40, data__epochs=epochs, data__num_workers=2,
            data__chunk_size=8, redis__max_memory_gb=0.02,
            model__per_device_train_batch_size=BATCH, model__save_steps=10, model__learning_rate=1e-4,
        )  # fmt: skip
    disturbed, calm = made["disturbed"], made["calm"]
    try:
        chaos = Chaos(disturbed, settings.seed, launcher)
        try:
            chaos.make_faults(settings.faults, log)
            chaos.finish()
        finally:
            chaos.end()
        report = Report(
            settings.seed, chaos.done, 80 * epochs, disturbed.trained_positions(), chaos.peak_bytes,
            chaos.limit_bytes, float("nan"), chaos.failures,
        )  # fmt: skip
        if report.failures:
            return report
        log("the same without faults, to compare the weights")
        with ending(calm.start(PRODUCER), calm.start(TRAINER)) as (_, trainer):
            wait_until(lambda: not trainer.running, timeout_s=900, pause_s=0.5)
        difference = largest_difference(disturbed.output_dir, calm.output_dir)
        return dataclasses.replace(report, difference=difference)
    finally:
        for run in made.values():
            run.stop_redis()


def largest_difference(first: Path, second: Path) -> float:
    """Largest absolute difference of any weight of two saved models."""
    a, b = (safetensors.numpy.load_file(path / "model.safetensors") for path in (first, second))
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def _gone_after(processes: list[psutil.Process], timeout_s: float) -> bool:
    return not psutil.wait_procs(processes, timeout=timeout_s)[1]


def main() -> None:
    """Runs and prints."""
    settings = tyro.cli(Settings, description=__doc__)
    settings.seed = settings.seed or random.SystemRandom().randrange(1, 10**6)
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", folder / "checkpoint")
        print(f"seed {settings.seed}; logs in {folder}", flush=True)
        report = run_chaos(settings, folder, folder / "checkpoint", partial(print, flush=True))
    print(report)
    sys.exit(0 if report.good else 1)


if __name__ == "__main__":
    main()
