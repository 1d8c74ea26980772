"""The program that looks after the queue: start, status, clear, stop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from config import RedisConfig
from tests.queues import Trainer, make_writer, payloads

ROOT = Path(__file__).parents[1]


def program(config: RedisConfig, *arguments: str) -> subprocess.CompletedProcess[str]:
    flags = [f"--redis.port={config.port}", f"--redis.max_memory_gb={config.max_memory_gb}"]
    command = [sys.executable, "redis_manager.py", *arguments, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_program_starts_shows_clears_and_stops(free_port: int) -> None:
    config = RedisConfig(port=free_port, max_memory_gb=0.05)
    dead = program(config, "status")
    assert (dead.returncode, dead.stdout) == (2, "")
    assert f"error: no redis listens at localhost:{free_port}" in dead.stderr
    assert "Traceback" not in dead.stderr
    try:
        assert "started redis" in program(config, "start").stdout
        assert "runs already" in program(config, "start").stdout
        make_writer(config).push(0, payloads(0, 5), ["row 1: broken"])
        Trainer(config).reader.take(0, 2)
        shown = json.loads(program(config, "status", "--json").stdout)
        assert shown["depth"] == 3
        assert shown["inflight"] == 2
        assert {"position": 0, "head": 2, "tail": 5, "planned": 100_000, "rejected": 1}.items() <= shown.items()
        assert shown["trainer_attached"] is True
        assert shown["producer_alive"] is True
        assert 0 < shown["used_memory_bytes"] <= shown["used_memory_peak_bytes"] <= shown["limit_bytes"]
        table = program(config, "status").stdout
        assert "queued     3 samples" in table
        assert "producer   alive" in table
        assert "3 queued samples, 2 in flight, 1 rejected lines, 1 plan" in program(config, "clear").stdout
        assert "was empty" in program(config, "clear").stdout
    finally:
        stopped = program(config, "stop")
    assert "stopped redis" in stopped.stdout
    assert "nothing to stop" in program(config, "stop").stdout


def test_the_programs_help_tells_its_actions() -> None:
    shown = program(RedisConfig(), "--help")
    assert shown.returncode == 0
    assert "python redis_manager.py status --json" in shown.stdout
