"""The two scripts as a user runs them: real processes with flags, logs and exit codes; and what a run has trained."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from config import RedisConfig
from sample_queue.embedded_server import embedded_pid, runtime_folder
from training.log import lines_behind_weights

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits"
PRODUCER, TRAINER = "prepro_add2radis.py", "final_training_medium.py"


class Script(subprocess.Popen[bytes]):
    """A script as a process, in a session of its own, as a terminal gives it; its output goes to files."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """
        Args:
            command: what to run.
            log: file name without ending; `.out` and `.err` are added.
        """
        self.name = log.name
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            super().__init__(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip

    @property
    def out(self) -> str:
        """Its stdout so far."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """Its stderr so far: the log."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.poll() is None

    @property
    def workers(self) -> list[psutil.Process]:
        """Worker processes of a producer that live."""
        try:
            children = psutil.Process(self.pid).children()
            return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        except psutil.NoSuchProcess:
            return []

    def family(self) -> list[psutil.Process]:
        """All that live of its session and of its descendants, itself included.

        An embedded server is neither; the ranks that torchrun starts have sessions of their own.
        """
        found: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            found = {child.pid: child for child in psutil.Process(self.pid).children(recursive=True)}
        for process in psutil.process_iter():
            with suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.pid:
                    found[process.pid] = process
        return [process for process in found.values() if process.is_running() and not _is_zombie(process)]

    def end(self) -> None:
        """Ends it and all of its family by kill -9."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait()

    def finish(self, timeout_s: float = 120) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended by itself."""
        try:
            self.wait(timeout_s)
        finally:
            self.end()
        return self.returncode, self.out, self.err


class Run:
    """The flags of one run over some of the digits' recordings, and its scripts as processes."""

    def __init__(self, folder: Path, checkpoint: Path, port: int, recordings: int = 20, **settings: object) -> None:
        """
        Args:
            folder: for everything that the run writes.
            checkpoint: the model.
            port: of the embedded server.
            recordings: how many of the digits' recordings to train on; each makes 2 samples per epoch.
            settings: flags, with `__` for the dot: `data__epochs=2`.
        """
        self.folder = folder
        self.output_dir = folder / "out"
        self.manifest = folder / "train.jsonl"
        self.recordings = recordings
        self._write_manifest()
        self.settings: dict[str, object] = {
            "redis.port": port,
            "redis.max_memory_gb": 0.05,
            "redis.namespace": "test",
            "redis.sleep_seconds": 0.2,
            "data.train_manifest": self.manifest,
            "data.eval_manifest": "",
            "data.epochs": 1,
            "data.num_workers": 1,
            "data.cache_dir": folder / "cache",
            "audio_augmentation.far_field_rooms": 1,
            "model.model_name": checkpoint,
            "model.language": "English",
            "model.output_dir": self.output_dir,
            "model.per_device_train_batch_size": 4,
            "model.warmup_steps": 0.1,
            "model.logging_steps": 4,
            "model.log_samples": True,
            "model.generation_max_length": 12,
            "model.per_device_eval_batch_size": 40,
        }
        self.settings |= _with_dots(settings)
        self._started = 0

    def _write_manifest(self) -> None:
        with (DIGITS / "train" / "metadata.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))[: self.recordings]
        with self.manifest.open("w", encoding="utf-8") as file:
            for row in rows:
                audio = str(DIGITS / "train" / row["file_name"])
                file.write(json.dumps({"audio": audio, "text": row["text"]}) + "\n")

    @property
    def redis_config(self) -> RedisConfig:
        """Where the run's server is."""
        return RedisConfig(port=int(str(self.settings["redis.port"])))

    def flags(self, **changes: object) -> list[str]:
        """The command line of a script."""
        return [f"--{name}={value}" for name, value in (self.settings | _with_dots(changes)).items()]

    def start(self, script: str, *launcher: str, **changes: object) -> Script:
        """Starts a script. `launcher`: words between the interpreter and the script."""
        self._started += 1
        log = self.folder / f"{self._started:03}-{Path(script).stem}"
        return Script([sys.executable, *launcher, script, *self.flags(**changes)], log)

    def finish(self, script: str, *launcher: str, **changes: object) -> tuple[int, str, str]:
        """Runs a script to its end: exit code, stdout, stderr."""
        return self.start(script, *launcher, **changes).finish()

    def manage(self, action: str) -> str:
        """What `redis_manager.py ACTION` prints."""
        flags = [flag for flag in self.flags() if flag.startswith("--redis.")]
        command = [sys.executable, "redis_manager.py", action, "--json", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    def status(self) -> dict:
        """The queue at this moment."""
        return json.loads(self.manage("status"))

    def signal_redis(self, number: int) -> int | None:
        """Signals the embedded server. Returns its pid, None when there is none."""
        pid = embedded_pid(self.redis_config)
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return None
        return pid

    def stop_redis(self) -> None:
        """Ends the embedded server, hung or not, and removes its folder."""
        self.signal_redis(signal.SIGKILL)
        shutil.rmtree(runtime_folder(self.redis_config.port))

    @property
    def record(self) -> Path:
        """What was trained, in the trainer's own words."""
        return self.output_dir / "trained_samples.jsonl"

    def steps_trained(self) -> int:
        """The last step in the record, 0 before there is one."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def trained_positions(self) -> list[int]:
        """Every position behind the weights, in the order of training."""
        return trained_positions(self.record)


def trained_positions(record: Path) -> list[int]:
    """Every position behind the weights that survived: step by step, and in ascending order within a step."""
    by_step: dict[int, list[int]] = {}
    for line in lines_behind_weights(record):
        by_step.setdefault(line["step"], []).extend(line["positions"])
    return [position for step in sorted(by_step) for position in sorted(by_step[step])]


def wait_until(condition: Callable[[], object], timeout_s: float = 90, pause_s: float = 0.05) -> None:
    """Waits for `condition`, and fails when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)


@contextmanager
def ending(*scripts: Script) -> Iterator[tuple[Script, ...]]:
    """Ends the scripts whatever happens."""
    try:
        yield scripts
    finally:
        for script in scripts:
            script.end()


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _with_dots(settings: dict[str, object]) -> dict[str, object]:
    return {name.replace("__", "."): value for name, value in settings.items()}
