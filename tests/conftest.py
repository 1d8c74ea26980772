"""What the tests share: real Redis servers, recordings made by code, and a tiny Whisper checkpoint."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import redis
import soundfile

from config import AudioAugmentationConfig, Config, DataConfig, ModelConfig, RedisConfig
from corpus.recordings import Recordings
from corpus.scan import load_recordings
from examples.make_tiny_checkpoint import make_tiny_checkpoint
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from producing.recipe import StreamRecipe
from producing.recipe import make_recipe as recipe_for
from sample_queue.embedded_server import find_executable, runtime_folder, start_embedded, stop_embedded
from tests.runs import DIGITS, PRODUCER, TRAINER, Run
from tests.servers import LossyProxy, S3Server, accepts, find_free_port, wait_for

pytest_plugins = ["tests.training_runs"]
"""Fixtures that live there: `produce`, `make_config`, `eval_manifest`, `one_thread`."""

# --- redis: a server for the session, special ones for single tests, a proxy that loses replies ---


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing uses just now."""
    return find_free_port()


@contextlib.contextmanager
def embedded_server(megabytes: float) -> Iterator[RedisConfig]:
    """An embedded server with a limit of `megabytes`; its configuration has short waits."""
    config = RedisConfig(
        port=find_free_port(),
        max_memory_gb=megabytes / 1024,
        sleep_seconds=0.02,
        producer_timeout_s=20,
        reconnect_timeout_s=20,
    )
    start_embedded(config)
    try:
        yield config
    finally:
        stop_embedded(config)
        shutil.rmtree(runtime_folder(config.port))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisConfig]:
    """One embedded server of 200 MB for the whole session."""
    with embedded_server(200) as config:
        yield config


@pytest.fixture
def redis_config(redis_server: RedisConfig) -> Iterator[RedisConfig]:
    """The session's server, emptied before the test, as a `RedisConfig` of the test's own."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield dataclasses.replace(redis_server)


@pytest.fixture
def own_redis(redis_config: RedisConfig, tmp_path: Path) -> Iterator[Callable[..., RedisConfig]]:
    """Starts servers with settings of their own: `own_redis("requirepass x", unix_socket=True)` is a configuration."""
    with contextlib.ExitStack() as servers:

        def start(*settings: str, unix_socket: bool = False) -> RedisConfig:
            port = find_free_port()
            path = tmp_path / f"{port}.sock"
            lines = [f"port {port}", "bind 127.0.0.1", 'save ""', "maxmemory 209715200", f"dir {tmp_path}", *settings]
            lines += [f"unixsocket {path}"] if unix_socket else []
            server = subprocess.Popen(
                [find_executable(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
            servers.callback(server.wait)
            servers.callback(server.kill)
            assert server.stdin is not None
            server.stdin.write("\n".join(lines) + "\n")
            server.stdin.close()
            wait_for(lambda: path.exists() if unix_socket else accepts(port))
            place = {"url": f"unix://{path}"} if unix_socket else {"host": "127.0.0.1", "port": port}
            return dataclasses.replace(redis_config, embedded=False, reconnect_timeout_s=5, **place)

        yield start


@pytest.fixture
def lossy_proxy(redis_config: RedisConfig) -> Iterator[LossyProxy]:
    """A proxy before the session's server; `lossy_proxy.config` leads through it."""
    proxy = LossyProxy(redis_config)
    yield proxy
    proxy.close()


# --- recordings and checkpoints ---


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Whisper checkpoint with a window of 4 s."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", folder)
    return folder


def tone(duration_s: float, frequency_hz: float = 440.0, sampling_rate: int = 16000, seed: int = 0) -> np.ndarray:
    """A tone in a little noise, float32 `[samples]`, peak about 0.5."""
    time_s = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    return (0.45 * np.sin(2 * np.pi * frequency_hz * time_s) + 0.01 * noise).astype(np.float32)


@pytest.fixture
def write_recording(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tone to a file below the test's folder; the ending of the name decides the format."""

    def write(name: str, duration_s: float = 1.0, sampling_rate: int = 16000, channels: int = 1, **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        waveform = np.stack([tone(duration_s, 300 + 100 * c, sampling_rate) for c in range(channels)], axis=1)
        soundfile.write(path, waveform, sampling_rate, **options)
        return path

    return write


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[[Sequence[Mapping[str, object]]], Path]:
    """Writes rows to train.csv in the test's folder."""

    def write(rows: Sequence[Mapping[str, object]], name: str = "train.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def make_run(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Callable[..., Run]]:
    """Makes a `Run` on a port of its own: `make_run(recordings=40, data__epochs=2)`. Its server ends with the test."""
    made: list[Run] = []

    def make(name: str = "", recordings: int = 20, **settings: object) -> Run:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made.append(Run(folder, tiny_checkpoint, find_free_port(), recordings, **settings))
        return made[-1]

    yield make
    for run in made:
        run.stop_redis()


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    """A run over 20 of the digits' recordings: 40 samples."""
    return make_run()


@pytest.fixture
def load(tiny_checkpoint, tmp_path) -> Callable[..., Recordings]:
    """Loads a manifest; settings of DataConfig as keywords."""
    spec = load_feature_spec(str(tiny_checkpoint))
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))

    def _load(path: object, processes: int = 0, **settings) -> Recordings:
        data = DataConfig(**{"cache_dir": str(tmp_path / "cache"), "retry_timeout_s": 3, **settings})
        report = tmp_path / "out" / "rejected.jsonl"
        return load_recordings(str(path), data, spec, encoder, report=report, processes=processes)

    return _load


@pytest.fixture
def recipe_of(tiny_checkpoint, tmp_path) -> Callable[..., StreamRecipe]:
    """The recipe of a manifest; settings of DataConfig and AudioAugmentationConfig as keywords and a dictionary."""

    def make(path: object, augmentation: dict | None = None, **settings) -> StreamRecipe:
        config = Config(
            data=DataConfig(
                **{"train_manifest": str(path), "cache_dir": str(tmp_path / "cache"), "chunk_size": 5, **settings}
            ),
            model=ModelConfig(model_name=str(tiny_checkpoint), language="English"),
            audio_augmentation=AudioAugmentationConfig(**{"far_field_rooms": 1, **(augmentation or {})}),
        )
        spec, encoder = load_feature_spec(str(tiny_checkpoint)), load_transcript_encoder(config.model)
        recordings = load_recordings(
            config.data.train_manifest, config.data, spec, encoder, report=tmp_path / "rejected.jsonl", processes=0
        )
        return recipe_for(config, recordings, spec, encoder)

    return make


@pytest.fixture
def make_recipe(
    tmp_path: Path,
    write_recording: Callable[..., Path],
    write_manifest: Callable[..., Path],
    recipe_of: Callable[..., StreamRecipe],
) -> Callable[..., StreamRecipe]:
    """A recipe over 12 recordings of 1 to 2 s; settings of DataConfig and AudioAugmentationConfig as dictionaries."""

    def make(data: dict | None = None, augmentation: dict | None = None) -> StreamRecipe:
        rows = [
            {
                "audio": write_recording(f"clips/{i}.flac", 1 + i / 12).relative_to(tmp_path),
                "text": f"text {i}",
                "id": f"r{i}",
            }
            for i in range(12)
        ]
        return recipe_of(write_manifest(rows), augmentation, **{"chunk_size": 8, **(data or {})})

    return make


# --- audio elsewhere: an S3 server, an HTTP server ---


@pytest.fixture(scope="session")
def s3_of_session() -> Iterator[S3Server]:
    """One for the session: drivers keep connections to the port that they saw first."""
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_of_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A running S3 server, and the environment by which its driver finds it."""
    s3_of_session.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_of_session.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "word",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return s3_of_session


@pytest.fixture
def http_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which an HTTP server shows it."""
    folder = tmp_path / "web"
    folder.mkdir()
    port = find_free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_for(lambda: accepts(port))
        yield folder, f"http://127.0.0.1:{port}"
        server.kill()


# --- a model that was trained ---


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of both scripts, 4 steps with a checkpoint every 2.

    It began from a checkpoint with Whisper's window of 30 s that forces French ids in config.json, as those on the Hub
    force English ones, and that writes at most 24 tokens, because it has learned nothing.
    """
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", folder / "checkpoint", chunk_length=30)
    config = json.loads((checkpoint / "config.json").read_text())
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    french = {"forced_decoder_ids": [[1, generation["lang_to_id"]["<|fr|>"]]]}
    (checkpoint / "config.json").write_text(json.dumps(config | french))
    (checkpoint / "generation_config.json").write_text(json.dumps(generation | {"max_length": 24}))
    lines = (DIGITS / "eval" / "metadata.csv").read_text(encoding="utf-8").splitlines()[:3]
    rows = [line if i == 0 else f"{DIGITS / 'eval'}/{line}" for i, line in enumerate(lines)]
    (folder / "eval.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run = Run(
        folder, checkpoint, find_free_port(), recordings=4, data__eval_manifest=folder / "eval.csv",
        model__max_steps=4, model__per_device_train_batch_size=2, model__save_steps=2, model__eval_steps=2,
        model__learning_rate=1e-3, audio_augmentation__far_field_effect_prob=0,
    )  # fmt: skip
    producer = run.start(PRODUCER)
    try:
        code, _, err = run.finish(TRAINER)
        assert code == 0, err
    finally:
        producer.end()
        run.stop_redis()
    return run
