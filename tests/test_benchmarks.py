"""The benchmarks run, on few samples: what they print then says nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_benchmark(name: str, tmp_path: Path, *arguments: object) -> dict[str, float]:
    """Figures by name."""
    file = tmp_path / "figures.json"
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, arguments), "--json", str(file)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    figures = {row["name"]: row["value"] for row in json.loads(file.read_text(encoding="utf-8"))}
    assert all(figures_name[:40] in result.stdout for figures_name in figures) or name == "profile_stages"
    return figures


@pytest.mark.long
def test_the_peers_that_need_nothing_else_run(tmp_path):
    few = ["--rounds", 1, "--samples", 16, "--stored", 8]
    figures = run_benchmark("compare", tmp_path, "original", "hugging_face", "memory", *few)
    assert figures["one process that also pushes / original recipe"] > 1
    assert figures["one worker / usual Hugging Face way"] > 1
    assert figures["Redis memory per sample, original recipe"] > 960  # 80 x 3000 float32
    assert figures["Redis memory per sample, ours"] < 90


@pytest.mark.skipif(importlib.util.find_spec("lhotse") is None, reason="lhotse is in requirements-bench.txt only")
def test_lhotse_runs_beside_us(tmp_path):
    figures = run_benchmark("compare", tmp_path, "lhotse", "--rounds", 1, "--samples", 16)
    assert figures["lhotse, shared chain"] > 0


def test_the_stages_are_profiled_and_their_shares_add_up(tmp_path):
    figures = run_benchmark("profile_stages", tmp_path, "--rounds", 2, "--clips", 16)
    shares = {name: value for name, value in figures.items() if name.endswith(", share")}
    assert 60 < sum(shares.values()) <= 100
    assert shares["log-mel, share"] > 5
    assert figures["decode at 44100 Hz"] > figures["decode"]


@pytest.mark.long
def test_one_and_two_workers_and_the_pusher_are_measured(tmp_path):
    figures = run_benchmark("scaling", tmp_path, "--rounds", 1, "--samples", 32, "--pushed", 64)
    assert figures["two workers"] > 0
    assert figures["receiving and pushing, per 1,000 samples/s"] > 0


@pytest.mark.long
def test_start_scan_and_waiting_are_measured(tmp_path):
    few = ["--rows", 300, 400, "--samples", 32, "--files", 60, "--wait_s", 0.5]
    figures = run_benchmark("producer", tmp_path, *few)
    assert figures["workers that have imported torch"] == 0
    assert figures["parent, 400 rows"] > 0
    assert figures["second start, from the cache"] < figures["scan of 60 files"]


@pytest.mark.long
def test_the_memory_of_the_producers_parent_is_measured_on_the_way(tmp_path):
    figures = run_benchmark("producer_memory", tmp_path, "--samples", 2000)
    assert len(figures) == 7
    assert figures["parent, up to 100 % of 2000 samples"] > 50
