"""What the benchmarks share: one core, a private server, a recipe over clips, rounds in turn, the table of figures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import psutil

import audioaugmentations
from benchmarks.clips import DIGITS, NOISE
from config import AudioAugmentationConfig, Config, DataConfig, ModelConfig, RedisConfig
from corpus.scan import load_recordings
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from producing.recipe import StreamRecipe, make_recipe
from sample_queue.embedded_server import start_embedded, stop_embedded
from sample_queue.protocol import QueueStatus, open_queue

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


@dataclass(frozen=True)
class Figure:
    """One line of the report."""

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    """Smallest of the rounds, where there are several."""
    high: float | None = None
    at_least: float | None = None
    """The target, where there is one."""
    at_most: float | None = None

    @property
    def target(self) -> str:
        """The target and whether it is met; empty without one."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}: {'met' if self.value >= self.at_least else 'MISSED'}"
        if self.at_most is not None:
            return f"≤ {self.at_most:g}: {'met' if self.value <= self.at_most else 'MISSED'}"
        return ""

    def __str__(self) -> str:
        spread = "" if self.low is None or self.high is None else f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.name:<58}{self.value:>10.4g} {self.unit:<12}{spread:<20}{self.target}".rstrip()


def report(figures: Sequence[Figure]) -> None:
    """Prints figures as a table."""
    for figure in figures:
        print(figure, flush=True)


def write_json(figures: Sequence[Figure], file: Path | None) -> None:
    """Writes figures as JSON, where a file is named."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(figure), "target": figure.target} for figure in figures]
        file.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Contestant(Protocol):
    """Something that makes samples."""

    def make(self, count: int) -> int:
        """Makes about `count` samples; returns how many."""


@dataclass
class Rates:
    """Samples/s in each round, of several contestants that took turns."""

    rounds: dict[str, list[float]]

    def rate(self, name: str) -> Figure:
        """The median rate of one."""
        rates = self.rounds[name]
        return Figure(name, statistics.median(rates), "samples/s", min(rates), max(rates))

    def ratio(self, name: str, over: str, at_least: float | None = None) -> Figure:
        """The median of the ratios of two, round by round: what slows the machine down slows both."""
        ratios = [a / b for a, b in zip(self.rounds[name], self.rounds[over], strict=True)]
        return Figure(f"{name} / {over}", statistics.median(ratios), "x", min(ratios), max(ratios), at_least)


def race(contestants: Mapping[str, tuple[Contestant, int]], rounds: int) -> Rates:
    """Has contestants take turns, each with its own number of samples per round, after one round that does not count.

    A contestant may have methods `before` and `after`, which are called around its turns and not timed.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, (contestant, count) in contestants.items():
            getattr(contestant, "before", int)()
            started = time.perf_counter()
            made = contestant.make(count)
            seconds = time.perf_counter() - started
            getattr(contestant, "after", int)()
            if number:
                rates[name].append(made / seconds)
    return Rates(rates)


@contextlib.contextmanager
def pinned(cores: int = 1) -> Iterator[set[int]]:
    """This process on its first cores only; children that are started inside inherit it."""
    before = os.sched_getaffinity(0)
    chosen = set(sorted(before)[:cores])
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def furnish(folder: Path) -> Path:
    """Puts into `folder` what takes long to make, and is kept in .cache for the next benchmark.

    That is a tiny Whisper with the real window of 30 s and the real features, and, in `folder`/cache, the rooms.

    Returns:
        The model's folder.
    """
    maker = ROOT / "examples" / "make_tiny_checkpoint.py"
    kept = ROOT / ".cache" / "benchmarks" / hashlib.sha256(maker.read_bytes()).hexdigest()[:16]
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
            made = Path(temporary) / "made"
            manifest = ["--manifest", str(DIGITS / "metadata.csv"), "--output", str(made / "checkpoint")]
            command = [sys.executable, str(maker), *manifest, "--chunk_length", "30"]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            audioaugmentations.prepare(AudioAugmentationConfig(bg_noise_file_list=[str(NOISE)]), made)
            with contextlib.suppress(OSError):  # another benchmark was faster
                made.rename(kept)
    (folder / "cache").mkdir(exist_ok=True)
    for bank in kept.glob("*.npz"):
        shutil.copyfile(bank, folder / "cache" / bank.name)
    return Path(shutil.copytree(kept / "checkpoint", folder / "checkpoint"))


def clips_recipe(folder: Path, clips: Path, **data: object) -> StreamRecipe:
    """A recipe over clips with Whisper's own window and all eight augmentations, noise files included."""
    config = Config(
        data=DataConfig(train_manifest=str(clips), cache_dir=str(folder / "cache"), **data),  # type: ignore[arg-type]
        model=ModelConfig(model_name=str(folder / "checkpoint"), language="English"),
        audio_augmentation=AudioAugmentationConfig(bg_noise_file_list=[str(NOISE)]),
    )
    spec, encoder = load_feature_spec(config.model.model_name), load_transcript_encoder(config.model)
    recordings = load_recordings(str(clips), config.data, spec, encoder, report=folder / "rejected.jsonl", processes=0)
    return make_recipe(config, recordings, spec, encoder)


@contextlib.contextmanager
def embedded(limit_gb: float) -> Iterator[RedisConfig]:
    """A private server for one measurement, on a port that nothing uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = RedisConfig(port=port, max_memory_gb=limit_gb)
    start_embedded(config)
    try:
        yield config
    finally:
        stop_embedded(config)


def script_flags(folder: Path, manifest: Path, port: int, namespace: str) -> list[str]:
    """Flags of both scripts for a benchmark's server."""
    return [
        f"--redis.port={port}", f"--redis.namespace={namespace}", "--redis.max_memory_gb=0.2",
        f"--data.train_manifest={manifest}", f"--data.cache_dir={folder / 'cache'}", "--data.num_workers=1",
        f"--model.model_name={folder / 'checkpoint'}", "--model.language=English",
        f"--model.output_dir={folder / 'out'}",
        f"--audio_augmentation.bg_noise_file_list={NOISE}",
    ]  # fmt: skip


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


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a producer."""
    children = psutil.Process(pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def cpu_share(pid: int, seconds: float) -> float:
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
