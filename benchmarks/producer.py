"""What the producer costs before its first sample, and while it waits.

    python benchmarks/producer.py            # all, as a table; --json FILE writes the figures as well
    python benchmarks/producer.py scan       # some of: worker, manifest, scan, waiting

worker    time from starting a worker process to its first sample, and its memory after a round of all augmentations
manifest  time to the first sample and the memory of parent and worker, with 7,000 and with 693,000 rows
scan      time to check 20,000 files whose durations the manifest does not give, and to find the result again. The files
          are real, small and just written, so they come from the system's cache; reading the headers of files that lie
          on a cold disk or on a network takes what that takes
waiting   share of a core that each script uses while it waits
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import tyro

from benchmarks.clips import make_clips, read_rows, write_manifest
from benchmarks.harness import (
    MIB,
    Figure,
    clips_recipe,
    cpu_share,
    embedded,
    furnish,
    peak_bytes,
    report,
    script,
    script_flags,
    wait_for,
    workers_of,
    write_json,
)
from common.process_executor import ProcessExecutor
from config import DataConfig, ModelConfig, RedisConfig
from corpus.scan import load_recordings
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from producing.sample_worker import make_samples, start_worker

ALL_ROWS = 693_000
"""Rows of the data set that the project was made for."""


@dataclass
class Settings:
    """What the command line sets."""

    what: tyro.conf.Positional[tuple[str, ...]] = ("worker", "manifest", "scan", "waiting")
    """Which figures to measure."""
    json: Path | None = None
    """File for the figures."""
    rows: tuple[int, int] = (7_000, ALL_ROWS)
    """Lengths of the two manifests."""
    samples: int = 2_000
    """Samples after which the memory is read."""
    files: int = 20_000
    """Files to scan."""
    wait_s: float = 20.0
    """How long the scripts are watched while they wait."""


def measure_worker(folder: Path, settings: Settings) -> list[Figure]:
    """Start-up and memory of one worker process, and whether it imports torch."""
    make_clips(folder / "clips")
    recipe = clips_recipe(folder, folder / "clips")
    started = time.perf_counter()
    executor = ProcessExecutor(1, start_worker, (recipe.for_workers(),))
    try:
        executor.submit(make_samples, recipe.tasks(0, 1)).result()
        first_s = time.perf_counter() - started
        executor.submit(make_samples, recipe.tasks(0, 512)).result()
        memory_bytes, torch_imported = executor.submit(_describe).result()
    finally:
        executor.shutdown()
    return [
        Figure("worker's start-up to its first sample", first_s, "s", at_most=2.5),
        Figure("worker's memory after 512 samples", memory_bytes / MIB, "MB", at_most=350),
        Figure("workers that have imported torch", torch_imported, "", at_most=0),
    ]


def _describe() -> tuple[int, int]:
    return psutil.Process().memory_info().rss, int("torch" in sys.modules)


def measure_manifest(folder: Path, settings: Settings) -> list[Figure]:
    """The producer's start and memory with a short and a long manifest."""
    make_clips(folder / "rows")
    rows = [{**row, "text": "আমি বাংলায় গান গাই " * 2} for row in read_rows(folder / "rows")]
    figures, resident = [], {}
    for length in settings.rows:
        manifest, namespace = folder / f"{length}.csv", f"rows{length}"
        write_manifest(manifest, rows, length)
        with embedded(0.2) as config, producing(folder, manifest, config, namespace) as producer:
            started = time.monotonic()
            first_s = wait_for(config, namespace, lambda status: status.depth > 0) - started
            wait_for(config, namespace, lambda status: status.tail >= settings.samples)
            resident[length] = psutil.Process(producer.pid).memory_info().rss / MIB
            largest = max(worker.memory_info().rss for worker in workers_of(producer.pid)) / MIB
            figures += [
                Figure(f"first sample after, {length} rows", first_s, "s"),
                Figure(f"parent, {length} rows", resident[length], "MB"),
                Figure(f"parent's peak, {length} rows", peak_bytes(producer.pid) / MIB, "MB"),
                Figure(f"largest worker, {length} rows", largest, "MB", at_most=350),
            ]
    few, many = settings.rows
    return [*figures, Figure(f"parent, {many} rows / {few} rows", resident[many] / resident[few], "x", at_most=1.1)]


def producing(
    folder: Path, manifest: Path, config: RedisConfig, namespace: str
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """The producer's script at work."""
    return script("prepro_add2radis.py", script_flags(folder, manifest, config.port, namespace))


def measure_scan(folder: Path, settings: Settings) -> list[Figure]:
    """A scan that reads every file's header, and the second start."""
    make_clips(folder / "some", 0.5, 1.0)
    (folder / "many").mkdir()
    some = sorted((folder / "some").glob("*.flac"))
    for number in range(settings.files):
        shutil.copyfile(some[number % len(some)], folder / "many" / f"{number:06}.flac")
    manifest = folder / "many" / "metadata.csv"
    write_manifest(
        manifest, [{"audio": f"{n:06}.flac", "text": "one two"} for n in range(settings.files)], settings.files
    )
    model = ModelConfig(model_name=str(folder / "checkpoint"), language="English")
    spec, encoder = load_feature_spec(model.model_name), load_transcript_encoder(model)
    data, seconds = DataConfig(train_manifest=str(manifest), cache_dir=str(folder / "scan cache")), []
    for _ in range(2):
        started = time.perf_counter()
        found = load_recordings(
            str(manifest), data, spec, encoder, report=folder / "rejected.jsonl", processes=os.cpu_count() or 1
        )
        seconds.append(time.perf_counter() - started)
    if len(found) != settings.files:
        raise RuntimeError(f"{len(found)} of {settings.files} files are usable")
    return [
        Figure(f"scan of {settings.files} files", seconds[0], "s"),
        Figure(f"the same, extrapolated to {ALL_ROWS} files", seconds[0] * ALL_ROWS / settings.files / 60, "minutes"),
        Figure("second start, from the cache", seconds[1], "s"),
    ]


def measure_waiting(folder: Path, settings: Settings) -> list[Figure]:
    """CPU share of both scripts: the producer at the memory limit, the trainer without samples."""
    make_clips(folder / "waiting")
    with embedded(0.03) as config, producing(folder, folder / "waiting", config, "full") as producer:
        wait_for(config, "full", lambda status: status.used_memory_bytes > 0.8 * status.limit_bytes)
        producer_share = cpu_share(producer.pid, settings.wait_s)
    with embedded(0.03) as config:
        flags = script_flags(folder, folder / "waiting", config.port, "empty")
        with script("final_training_medium.py", flags) as trainer:
            time.sleep(settings.wait_s)  # it imports torch and begins to wait for a plan
            trainer_share = cpu_share(trainer.pid, settings.wait_s)
    return [
        Figure("producer at the limit", producer_share, "% of a core"),
        Figure("trainer without a plan", trainer_share, "% of a core"),
    ]


MEASUREMENTS = {
    "worker": measure_worker,
    "manifest": measure_manifest,
    "scan": measure_scan,
    "waiting": measure_waiting,
}


def measure(settings: Settings) -> list[Figure]:
    """Measures and prints."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        furnish(folder)
        for what in settings.what:
            found = MEASUREMENTS[what](folder, settings)
            report(found)
            figures += found
    return figures


def main() -> None:
    """Measures, prints, writes."""
    settings = tyro.cli(Settings, description=__doc__)
    write_json(measure(settings), settings.json)


if __name__ == "__main__":
    main()
