"""What docs/scaling.md says of clusters and of very many recordings, measured on this machine.

    python benchmarks/cluster.py            # all, as a table; --json FILE writes the figures as well
    python benchmarks/cluster.py dask       # one of: dask, plan

dask  the local pool against a Dask scheduler with as many workers, and the CPU time of scheduler and producer per task
plan  memory and time of the order of an epoch, and of handing out tasks, with 77 million recordings (100,000 h)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")  # as docs/scaling.md has it

import psutil
import tyro

from benchmarks.clips import make_clips
from benchmarks.harness import clips_recipe
from producing.plan import Plan
from producing.recipe import StreamRecipe
from producing.worker_pool import WorkerPool

PORT = 26786
WARM_UP_SAMPLES = 256
ROUNDS = 3
ROWS = 77_000_000
"""Recordings of 4.7 s in 100,000 h."""


@dataclass
class Settings:
    """What the command line sets."""

    what: tyro.conf.Positional[tuple[str, ...]] = ("dask", "plan")
    """Which figures to measure."""
    json: Path | None = None
    """File for the figures."""
    workers: int = 1
    """Worker processes; leave a core to the scheduler and the producer."""
    samples: int = 1024
    """Samples to make in each measurement."""


def measure_dask(folder: Path, settings: Settings) -> dict[str, float]:
    """The same chunks from the local pool and from Dask workers on the same cores."""
    make_clips(folder / "clips")
    checkpoint = [sys.executable, "examples/make_tiny_checkpoint.py", "--manifest=examples/digits/train/metadata.csv"]
    window = ["--chunk_length=30", f"--output={folder / 'checkpoint'}"]
    subprocess.run([*checkpoint, *window], cwd=ROOT, check=True, capture_output=True)
    recipe = clips_recipe(folder, folder / "clips")
    recipe = with_data(recipe, epochs=200)
    local, remote = [], []
    with cluster(folder, settings.workers) as scheduler:
        on_dask = with_data(recipe, executor=f"tcp://127.0.0.1:{PORT}")
        for _ in range(ROUNDS):  # in turn, so that what else the machine does hits both
            local.append(run(recipe, settings))
            remote.append(run(on_dask, settings, scheduler))
        # So many small tasks that what both processes use while they idle does not count.
        _, here_ms, _ = run(with_data(recipe, chunk_size=1), settings)
        _, producer_ms, scheduler_ms = run(with_data(on_dask, chunk_size=1), settings, scheduler)
    rates, producer_chunk_ms = [
        [statistics.median(run[kind] for run in runs) for runs in (local, remote)] for kind in (0, 1)
    ]
    return {
        f"samples/s, local processes: {settings.workers}": rates[0],
        f"samples/s, Dask workers: {settings.workers}": rates[1],
        "producer's CPU, ms per chunk of 32, local": producer_chunk_ms[0],
        "producer's CPU, ms per chunk of 32, Dask": producer_chunk_ms[1],
        "producer's CPU, ms per task of one sample, local": here_ms,
        "producer's CPU, ms per task of one sample, Dask": producer_ms,
        "scheduler's CPU, ms per task of one sample": scheduler_ms,
    }


def with_data(recipe: StreamRecipe, **changes: object) -> StreamRecipe:
    """The recipe with other settings of `DataConfig`."""
    data = dataclasses.replace(recipe.config.data, **changes)  # type: ignore[arg-type]
    plan = dataclasses.replace(recipe.plan, epochs=data.epochs)
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, data=data), plan=plan)


def run(
    recipe: StreamRecipe, settings: Settings, scheduler: psutil.Process | None = None
) -> tuple[float, float, float]:
    """Makes chunks. Returns samples/s, and the CPU time of this process and of the scheduler in ms per task."""
    position, size = 0, recipe.config.data.chunk_size
    with WorkerPool(recipe, settings.workers) as pool:
        while position < WARM_UP_SAMPLES:
            position += len(pool.chunk_at(position, lambda: None).payloads)
        started, cpu, scheduler_cpu = time.perf_counter(), time.process_time(), cpu_time(scheduler)
        while position < WARM_UP_SAMPLES + settings.samples:
            position += len(pool.chunk_at(position, lambda: None).payloads)
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        scheduler_s = cpu_time(scheduler) - scheduler_cpu
    tasks = settings.samples / size
    return settings.samples / took_s, 1000 * cpu_s / tasks, 1000 * scheduler_s / tasks


def cpu_time(process: psutil.Process | None) -> float:
    """CPU seconds that a process has used; 0 for none."""
    return sum(process.cpu_times()[:2]) if process else 0.0


@contextlib.contextmanager
def cluster(folder: Path, workers: int) -> Iterator[psutil.Process]:
    """A Dask scheduler and its workers, ended afterwards."""
    dask, address = str(Path(sys.executable).with_name("dask")), f"tcp://127.0.0.1:{PORT}"
    commands = [[dask, "scheduler", "--host=127.0.0.1", f"--port={PORT}", "--no-dashboard"]]
    worker = [dask, "worker", address, "--nthreads=1", "--no-nanny", "--no-dashboard", "--host=127.0.0.1"]
    commands += [worker] * workers
    with contextlib.ExitStack() as processes:
        log = processes.enter_context((folder / "dask.log").open("wb"))
        started = []
        for command in commands:
            started.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log))
            processes.callback(started[-1].wait)
            processes.callback(started[-1].kill)
        import distributed

        with distributed.Client(address, timeout=30, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
        yield psutil.Process(started[0].pid)


def measure_plan(folder: Path, settings: Settings) -> dict[str, float]:
    """The order of an epoch with as many recordings as 100,000 h hold."""
    plan = Plan(seed=42, rows=ROWS, epochs=1, include_original=True, augmented_copies=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    plan.draw(0)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    for position in range(0, len(plan), len(plan) // 10_000):
        plan.draw(position)
    return {
        "order of an epoch, s": first_s,
        "its memory, MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "a draw after that, us": (time.perf_counter() - started) / 10_000 * 1e6,
    }


MEASUREMENTS = {"dask": measure_dask, "plan": measure_plan}


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(Settings, description=__doc__)
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for what in settings.what:
            figures[what] = MEASUREMENTS[what](Path(temporary), settings)
            for name, value in figures[what].items():
                print(f"{what:<6}{name:<52}{value:>10.2f}", flush=True)
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
