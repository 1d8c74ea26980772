"""What the README promises of the producer, measured on this machine.

    python benchmarks/producer.py            # all, as a table; --json FILE writes the figures as well
    python benchmarks/producer.py worker     # one of: worker, memory, manifest, waiting

worker    samples/s of one worker on one core: all eight augmentations in turn, and the originals; 3 to 5 s clips
memory    Redis memory per sample of 4.7 s mean
manifest  time to the first sample and the producer's memory, with 7,000 and with 693,000 rows
waiting   share of a core that each script uses while it waits
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import psutil
import tyro

from benchmarks.clips import make_clips, write_manifest
from config import AudioAugmentationConfig, Config, DataConfig, ModelConfig, RedisConfig
from data_processor import load_feature_spec, load_transcript_encoder
from embedded_redis import start_embedded, stop_embedded
from recordings import load_recordings
from redis_manager import QueueStatus, SampleWriter
from sample_queue import open_queue
from worker_pool import Recipe, SampleMaker, make_recipe

MIB = 2**20
PORT = 26380


@dataclass
class Settings:
    """What the command line sets."""

    what: tyro.conf.Positional[tuple[str, ...]] = ("worker", "memory", "manifest", "waiting")
    """Which figures to measure."""
    json: Path | None = None
    """File for the figures."""
    rounds: int = field(default=5)
    """Repetitions of the worker's measurement, each of 512 samples; the median counts."""


def clips_recipe(folder: Path, clips: Path) -> Recipe:
    """A recipe over clips with Whisper's own window, noise files included."""
    config = Config(
        data=DataConfig(train_manifest=str(clips), cache_dir=str(folder / "cache")),
        model=ModelConfig(model_name=str(folder / "checkpoint"), language="English"),
        audio_augmentation=AudioAugmentationConfig(bg_noise_file_list=[str(ROOT / "examples" / "noise")]),
    )
    spec, encoder = load_feature_spec(config.model.model_name), load_transcript_encoder(config.model)
    recordings = load_recordings(str(clips), config.data, spec, encoder, report=folder / "rejected.jsonl", processes=0)
    return make_recipe(config, recordings, spec, encoder)


def measure_worker(folder: Path, settings: Settings) -> dict[str, float]:
    """Samples/s of one worker, pinned to one core."""
    make_clips(folder / "clips")
    maker = SampleMaker(clips_recipe(folder, folder / "clips"))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    maker.make_chunk(0, 128)  # fills caches, decodes the noise
    rates = []
    for number in range(settings.rounds):
        started = time.perf_counter()
        maker.make_chunk(128 + 256 * number, 128 + 256 * number + 512)
        rates.append(512 / (time.perf_counter() - started))
    os.sched_setaffinity(0, cores)
    return {"samples/s, median": statistics.median(rates), "samples/s, min": min(rates), "samples/s, max": max(rates)}


def measure_memory(folder: Path, settings: Settings) -> dict[str, float]:
    """Redis memory per sample, all overheads in."""
    mean_s = make_clips(folder / "clips 4.7 s", 2.7, 6.7)
    recipe = clips_recipe(folder, folder / "clips 4.7 s")
    maker = SampleMaker(recipe)
    with embedded(0.2) as config:
        from prepro_add2radis import make_card

        writer = SampleWriter(config, make_card(recipe))
        tail, empty = writer.open(), writer.status().used_memory_bytes
        while tail < 1024:
            tail = writer.push(tail, maker.make_chunk(tail, tail + 32).payloads)
        used = writer.status().used_memory_bytes - empty
        writer.close()
    return {"mean clip, s": mean_s, "kB per sample": used / tail / 1000}


def measure_manifest(folder: Path, settings: Settings) -> dict[str, float]:
    """The producer's start and memory with a short and a long manifest."""
    make_clips(folder / "rows")
    rows = [{"audio": f"rows/{n:04}.flac", "text": "আমি বাংলায় গান গাই " * 2, "duration": "4.000"} for n in range(200)]
    figures = {}
    for length in (7_000, 693_000):
        manifest = folder / f"{length}.csv"
        write_manifest(manifest, rows, length)
        flags = script_flags(folder, manifest, namespace=f"rows{length}")
        with embedded(0.2) as config, script("prepro_add2radis.py", flags) as producer:
            started = time.monotonic()
            first_s = wait_for(config, f"rows{length}", lambda status: status.depth > 0) - started
            wait_for(config, f"rows{length}", lambda status: status.tail >= 2000)
            parent = psutil.Process(producer.pid)
            figures[f"first sample after s, {length} rows"] = first_s
            figures[f"parent MB, {length} rows"] = parent.memory_info().rss / MIB
            workers = [
                child.memory_info().rss for child in parent.children() if "spawn_main" in " ".join(child.cmdline())
            ]
            figures[f"largest worker MB, {length} rows"] = max(workers) / MIB
            figures[f"parent peak MB, {length} rows"] = peak_bytes(producer.pid) / MIB
    return figures


def measure_waiting(folder: Path, settings: Settings) -> dict[str, float]:
    """CPU share of both scripts: the producer at the memory limit, the trainer without samples."""
    make_clips(folder / "waiting")
    figures = {}
    flags = script_flags(folder, folder / "waiting", namespace="full")
    with embedded(0.03) as config, script("prepro_add2radis.py", flags) as producer:
        wait_for(config, "full", lambda status: status.used_memory_bytes > 0.8 * status.limit_bytes)
        figures["producer at the limit, % of a core"] = cpu_share(producer.pid)
    flags = script_flags(folder, folder / "waiting", namespace="empty")
    with embedded(0.03), script("final_training_medium.py", flags) as trainer:
        time.sleep(20)  # it imports torch and begins to wait for a plan
        figures["trainer without a plan, % of a core"] = cpu_share(trainer.pid)
    return figures


def script_flags(folder: Path, manifest: Path, namespace: str) -> list[str]:
    """Flags of both scripts for the benchmark's server."""
    return [
        f"--redis.port={PORT}", f"--redis.namespace={namespace}", "--redis.max_memory_gb=0.2",
        f"--data.train_manifest={manifest}", f"--data.cache_dir={folder / 'cache'}", "--data.num_workers=1",
        f"--model.model_name={folder / 'checkpoint'}", "--model.language=English",
        f"--model.output_dir={folder / 'out'}",
        f"--audio_augmentation.bg_noise_file_list={ROOT / 'examples' / 'noise'}",
    ]  # fmt: skip


@contextlib.contextmanager
def embedded(limit_gb: float) -> Iterator[RedisConfig]:
    """A private server for one measurement."""
    config = RedisConfig(port=PORT, max_memory_gb=limit_gb)
    start_embedded(config)
    try:
        yield config
    finally:
        stop_embedded(config)


@contextlib.contextmanager
def script(name: str, flags: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """One of the scripts as a process, ended afterwards."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([sys.executable, name, *flags], cwd=ROOT, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def wait_for(config: RedisConfig, namespace: str, condition: object, timeout_s: float = 300.0) -> float:
    """Waits until the queue's status satisfies `condition`. Returns the time, as `time.monotonic` counts it."""
    assert callable(condition)
    queue = open_queue(RedisConfig(port=config.port, max_memory_gb=config.max_memory_gb, namespace=namespace))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status: QueueStatus = queue.status()
        if condition(status):
            return time.monotonic()
        time.sleep(0.05)
    raise TimeoutError(f"namespace {namespace} did not get there in {timeout_s} s: {status}")


def cpu_share(pid: int, seconds: float = 20.0) -> float:
    """Per cent of one core that a process and its children use."""

    def used() -> float:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family if "redis-server" not in process.name())

    before = used()
    time.sleep(seconds)
    return 100 * (used() - before) / seconds


def peak_bytes(pid: int) -> int:
    """Largest resident size that a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


MEASUREMENTS = {
    "worker": measure_worker,
    "memory": measure_memory,
    "manifest": measure_manifest,
    "waiting": measure_waiting,
}


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(Settings, description=__doc__)
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make = [sys.executable, "examples/make_tiny_checkpoint.py", "--manifest", "examples/digits/train/metadata.csv"]
        window = ["--chunk_length", "30", "--output", str(folder / "checkpoint")]
        subprocess.run([*make, *window], cwd=ROOT, check=True, capture_output=True)
        for what in settings.what:
            figures[what] = MEASUREMENTS[what](folder, settings)
            for name, value in figures[what].items():
                print(f"{what:<10}{name:<45}{value:>10.2f}", flush=True)
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
