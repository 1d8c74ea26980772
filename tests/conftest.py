"""What the tests share: real Redis servers, recordings made by code, and a tiny Whisper checkpoint."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import redis
import soundfile

import worker_pool
from config import AudioAugmentationConfig, Config, DataConfig, ModelConfig, RedisConfig
from data_processor import load_feature_spec, load_transcript_encoder
from embedded_redis import find_executable, runtime_folder, start_embedded, stop_embedded
from examples.make_tiny_checkpoint import make_tiny_checkpoint
from recordings import load_recordings

DIGITS = Path(__file__).parent.parent / "examples" / "digits"


# --- redis: a server for the session, special ones for single tests, a proxy that loses replies ---


def find_free_port() -> int:
    """A TCP port from 20000 on that nothing uses just now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port >= 20000:
            return port


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
            _wait_for(lambda: path.exists() if unix_socket else _accepts(port))
            place = {"url": f"unix://{path}"} if unix_socket else {"host": "127.0.0.1", "port": port}
            return dataclasses.replace(redis_config, embedded=False, reconnect_timeout_s=5, **place)

        yield start


@pytest.fixture
def lossy_proxy(redis_config: RedisConfig) -> Iterator[LossyProxy]:
    """A proxy before the session's server; `lossy_proxy.config` leads through it."""
    proxy = LossyProxy(redis_config)
    yield proxy
    proxy.close()


class LossyProxy:
    """Passes everything on, but loses the reply to a command that it is told to look for."""

    def __init__(self, target: RedisConfig) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = target
        self.config = dataclasses.replace(
            target, host="127.0.0.1", port=self._listener.getsockname()[1], embedded=False
        )
        self._looked_for: bytes | None = None
        self._before = False
        self.lost = 0
        """Commands whose reply was lost so far."""
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, command: str, before: bool = False) -> None:
        """Closes the connection at the next command that contains `command`: after the server has run it, or before."""
        self._looked_for, self._before = command.encode(), before

    def close(self) -> None:
        """Closes every connection."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target.port))
            self._sockets += [client, server]
            losing = threading.Event()
            for source, sink, is_request in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, is_request, losing), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_request: bool, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_request and self._looked_for and self._looked_for in data:
                    self._looked_for = None
                    self.lost += 1
                    if self._before:
                        break
                    losing.set()
                if not is_request and losing.is_set():
                    break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.01)


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
def make_recipe(
    tiny_checkpoint: Path, tmp_path: Path, write_recording: Callable[..., Path], write_manifest: Callable[..., Path]
) -> Callable[..., worker_pool.Recipe]:
    """A recipe over 12 recordings of 1 to 2 s; settings of DataConfig and AudioAugmentationConfig as dictionaries."""

    def make(data: dict | None = None, augmentation: dict | None = None) -> worker_pool.Recipe:
        rows = [
            {
                "audio": write_recording(f"clips/{i}.flac", 1 + i / 12).relative_to(tmp_path),
                "text": f"text {i}",
                "id": f"r{i}",
            }
            for i in range(12)
        ]
        config = Config(
            data=DataConfig(
                train_manifest=str(write_manifest(rows)),
                cache_dir=str(tmp_path / "cache"),
                **{"chunk_size": 8, **(data or {})},
            ),
            model=ModelConfig(model_name=str(tiny_checkpoint), language="English"),
            audio_augmentation=AudioAugmentationConfig(**{"far_field_rooms": 1, **(augmentation or {})}),
        )
        spec, encoder = load_feature_spec(str(tiny_checkpoint)), load_transcript_encoder(config.model)
        recordings = load_recordings(
            config.data.train_manifest, config.data, spec, encoder, report=tmp_path / "rejected.jsonl", processes=0
        )
        return worker_pool.make_recipe(config, recordings, spec, encoder)

    return make
