"""Training runs in a test's own process: a producer of random samples, the settings of a short run, its record."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from config import Config, DataConfig, ModelConfig, RedisConfig
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from features.sample import Sample, encode_sample
from sample_queue.errors import RunFinished
from sample_queue.protocol import PlanCard
from sample_queue.writer import SampleWriter
from tests.runs import DIGITS
from training.log import lines_behind_weights
from training.model import load_model
from training.stream_trainer import StreamTrainer
from training_manager import TrainingRun

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two cores are shared with the server and the producer: threads that spin for each other are many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Producer(threading.Thread):
    """Pushes small random samples with real labels: a pure function of the position, like the real producer's."""

    def __init__(self, config: Config, planned: int, *, available: int | None = None, pause_s: float = 0.0) -> None:
        """
        Args:
            config: queue and model.
            planned: samples in the plan.
            available: how many of them it gives at first; `available` may be raised later.
            pause_s: pause after each sample.
        """
        super().__init__(daemon=True)
        spec, self._encoder = load_feature_spec(config.model.model_name), load_transcript_encoder(config.model)
        self.card = PlanCard(
            fingerprint=f"plan of {planned}",
            planned=planned,
            samples_per_epoch=max(1, planned // 2),
            num_mel_bins=spec.num_mel_bins,
            window_frames=spec.window_frames,
            feature_dtype="float16",
            tokenizer=self._encoder.digest,
            max_sample_bytes=spec.num_mel_bins * spec.window_frames * 2 + 4000,
        )
        self.available = planned if available is None else available
        self.over = threading.Event()
        self._pause_s = pause_s
        self._writer = SampleWriter(config.redis, self.card)
        self._tail = self._writer.open()
        self.start()

    def make(self, position: int) -> bytes:
        generator = np.random.default_rng(position)
        features = generator.standard_normal((self.card.num_mel_bins, generator.integers(40, 300))).astype(np.float16)
        labels = self._encoder.encode(" ".join(generator.choice(WORDS, generator.integers(1, 6))))
        sample = Sample(features, labels, position, f"id{position}", -1.0, "original", 2.0, self.card.fingerprint)
        return encode_sample(sample)

    def run(self) -> None:
        with contextlib.suppress(RunFinished):
            while not self.over.is_set():
                stop = min(self._tail + (1 if self._pause_s else 8), self.available)
                if self._tail < stop:
                    payloads = [self.make(position) for position in range(self._tail, stop)]
                    self._tail = self._writer.push(self._tail, payloads)
                    time.sleep(self._pause_s)
                else:
                    self._writer.heartbeat()
                    self._tail = self._writer.status().tail
                    time.sleep(0.05)
        self._writer.close()

    def leave(self) -> None:
        self.over.set()
        self.join()


@pytest.fixture
def produce() -> Iterator[Callable[..., Producer]]:
    """Starts a `Producer`; it ends with the test."""
    with contextlib.ExitStack() as producers:

        def start(config: Config, planned: int, **options) -> Producer:
            producer = Producer(config, planned, **options)
            producers.callback(producer.leave)
            return producer

        yield start


@pytest.fixture
def make_config(redis_config: RedisConfig, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings of a short run: `make_config(max_steps=3)`."""

    def make(*, namespace: str = "test", eval_manifest: str = "", **model) -> Config:
        settings = {
            "model_name": str(tiny_checkpoint), "language": "English", "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0,
            "save_steps": 4, "eval_steps": model.get("save_steps", 4), "logging_steps": 1,
            "generation_max_length": 12, "log_samples": True,
        }  # fmt: skip
        return Config(
            redis=dataclasses.replace(redis_config, namespace=namespace),
            data=DataConfig(eval_manifest=eval_manifest, cache_dir=str(tmp_path / "cache")),
            model=ModelConfig(**(settings | model)),
        )

    return make


@pytest.fixture
def eval_manifest(tmp_path: Path) -> str:
    """Six digits recordings."""
    lines = (DIGITS / "eval" / "metadata.csv").read_text(encoding="utf-8").splitlines()[:7]
    (tmp_path / "eval.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in lines[1:]:
        name = line.split(",")[0]
        (tmp_path / name).symlink_to(DIGITS / "eval" / name)
    return str(tmp_path / "eval.csv")


def train(config: Config) -> tuple[StreamTrainer, str]:
    """What the script does, without its process."""
    run = TrainingRun(config)
    plan = run.wait_for_plan()
    model, processor = load_model(config.model)
    trainer = run.make_trainer(plan, model, processor)
    run.attach(trainer)
    run.train(trainer)
    run.save(trainer)
    metrics = run.evaluate(trainer)
    run.finish(trainer)
    return trainer, run.report(trainer, metrics)


def start_script(config: Config, *launcher: str) -> subprocess.Popen[str]:
    """The script as a process."""
    flags = []
    for group in ("redis", "data", "model"):
        for name, value in dataclasses.asdict(getattr(config, group)).items():
            if isinstance(value, dict):
                flags += [f"--{group}.trainer_arguments", *(str(word) for pair in value.items() for word in pair)]
            elif value != getattr(getattr(Config(), group), name):
                flags += [f"--{group}.{name}", str(value)]
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "final_training_medium.py"), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def output_dir(config: Config) -> Path:
    return Path(config.model.output_dir)


def trained_samples(config: Config) -> list[dict]:
    """The record of what was trained by the weights that survived."""
    return lines_behind_weights(output_dir(config) / "trained_samples.jsonl")


def trained_positions(config: Config) -> list[int]:
    return [position for line in trained_samples(config) for position in line["positions"]]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def largest_difference(first: Path, second: Path) -> float:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def wait_until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextlib.contextmanager
def signal_when(condition: Callable[[], object], signal_number: int) -> Iterator[list[float]]:
    """Signals this process once `condition` holds; gives the time it did."""
    sent: list[float] = []

    def watch() -> None:
        wait_until(condition)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal_number)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield sent
    watcher.join()


def lines_in_record(config: Config) -> int:
    path = output_dir(config) / "trained_samples.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
