"""Imports go only downwards, and what must stay light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    ["config", "audio_file", "flac_decoder"],
    ["remote_files"],
    ["row_group_cache", "manifest"],
    ["audio_sources", "parquet_manifest"],
    ["command_line", "rejected_report", "process_executor", "data_processor", "sample", "progress"],
    ["speech_enhancement", "noise_sources", "room_acoustics", "time_stretch", "embedded_redis", "recording_checks"],
    ["audioaugmentations", "recordings", "redis_server"],
    ["plan", "sample_queue"],
    ["sample_reader", "sample_writer", "sample_worker"],
    ["redis_manager", "dask_plugin"],
    ["dask_workers"],
    ["worker_pool"],
    ["metrics", "checkpoints", "output_folder", "ranks", "stop_flag"],
    ["token_mean_loss", "trainer_arguments", "training_schedule"],
    ["training_data", "training_log", "whisper_model", "producer_report"],
    ["stream_trainer"],
    ["training_report"],
    ["training_manager"],
    ["prepro_add2radis", "final_training_medium"],
]
"""A module may import modules of the layers above it in this list."""
TORCH = {"torch", "transformers", "accelerate"}
NEVER = {
    "config": {*TORCH, "redis", "datasets", "librosa"},
    "audioaugmentations": {*TORCH, "redis"},
    "noise_sources": {*TORCH, "redis"},
    "room_acoustics": {*TORCH, "redis"},
    "speech_enhancement": {*TORCH, "redis"},
    "audio_file": {*TORCH, "redis"},
    "time_stretch": {*TORCH, "redis"},
    "data_processor": {"torch", "redis"},
    "recordings": {*TORCH, "redis"},
    "remote_files": {*TORCH, "redis", "datasets", "librosa", "pyarrow"},
    "row_group_cache": {*TORCH, "redis", "datasets", "librosa"},
    "audio_sources": {*TORCH, "redis", "datasets", "librosa", "pyarrow", "fsspec"},
    "plan": {*TORCH, "redis"},
    "sample": {*TORCH, "redis"},
    "sample_worker": {*TORCH, "redis", "distributed"},
    "worker_pool": {*TORCH, "redis", "redis_manager", "distributed"},
    "dask_plugin": {*TORCH, "redis"},
    "dask_workers": {*TORCH, "redis"},
    "redis_server": {*TORCH, "librosa"},
    "sample_queue": {*TORCH, "librosa"},
    "sample_reader": {*TORCH, "librosa"},
    "sample_writer": {*TORCH, "librosa"},
    "redis_manager": {*TORCH, "librosa"},
    "prepro_add2radis": {"training_manager", "torch"},
    "training_manager": {"audiomentations", "audioaugmentations", "worker_pool"},
    "training_data": {"audiomentations", "audioaugmentations", "worker_pool"},
    "final_training_medium": {"audiomentations", "audioaugmentations", "worker_pool"},
}
"""What the module's job forbids."""


def imports(module: str) -> set[str]:
    """Top-level names of all that a module imports, functions' own imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_every_module_has_its_layer():
    assert sorted(name for layer in LAYERS for name in layer) == sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("depth", range(len(LAYERS)))
def test_modules_import_only_from_the_layers_above(depth):
    allowed = {name for layer in LAYERS[:depth] for name in layer}
    modules = {name for layer in LAYERS for name in layer}
    for module in LAYERS[depth]:
        assert imports(module) & modules <= allowed, module


@pytest.mark.parametrize("module", NEVER)
def test_no_module_imports_what_its_job_forbids(module):
    assert not imports(module) & NEVER[module]


def test_importing_every_module_does_nothing(tmp_path):
    names = [name for layer in LAYERS for name in layer]
    code = f"import threading\nfor name in {names}: __import__(name)\nassert threading.active_count() == 1"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
