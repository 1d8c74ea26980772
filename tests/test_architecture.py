"""Rooms import only what the table of docs/architecture.md lets them, and what must stay light stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LIGHT = {"common", "config"}
ABOVE_CORPUS = {*LIGHT, "storage", "features", "audio", "corpus"}
TABLE: dict[str, set[str]] = {
    "common": set(),
    "config": {"common"},
    "storage": LIGHT,
    "features": LIGHT,
    "sample_queue": LIGHT,
    "audio": {*LIGHT, "storage", "features"},
    "corpus": {*LIGHT, "storage", "features", "audio"},
    "audioaugmentations": {*LIGHT, "features", "audio"},
    "data_processor": {*LIGHT, "features", "audio"},
    "producing": {*ABOVE_CORPUS, "audioaugmentations", "data_processor", "sample_queue"},
    "training": {*ABOVE_CORPUS, "data_processor", "sample_queue"},
    "pages": {*LIGHT, "features", "audio"},
    "redis_manager": {*LIGHT, "sample_queue"},
    "training_manager": {*LIGHT, "training", "pages", "corpus", "features", "sample_queue", "data_processor"},
}
"""What each room, and each module of the root, may import of ours besides itself."""
PROGRAMS = {"prepro_add2radis", "final_training_medium", "tools"}
"""They may import anything, and nothing imports them or `redis_manager`."""
TORCH = {"torch", "transformers", "accelerate"}
NEVER = {
    "common": {*TORCH, "redis", "librosa", "datasets", "numpy"},
    "config": {*TORCH, "redis", "librosa", "datasets", "numpy"},
    "storage": {*TORCH, "redis", "librosa", "datasets"},
    "audio": {*TORCH, "redis"},
    "features": {"torch", "redis"},
    "corpus": {*TORCH, "redis"},
    "audioaugmentations": {*TORCH, "redis"},
    "data_processor": {*TORCH, "redis"},
    "producing": {*TORCH, "redis"},
    "pages": {*TORCH, "redis", "datasets"},
    "sample_queue": {*TORCH, "librosa"},
    "redis_manager": {*TORCH, "librosa"},
    "prepro_add2radis": TORCH,
}
"""Packages that a room's job forbids, function-level imports included."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the project with the name of its room (a module of the root is its own room)."""
    for path in sorted(ROOT.glob("*.py")):
        yield path.stem, path
    for room in [*TABLE, *PROGRAMS]:
        for path in sorted((ROOT / room).glob("**/*.py")):
            yield room, path


def imports(path: Path) -> dict[str, set[str]]:
    """What a module imports, functions' own imports included: top-level name → full names."""
    names: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [node.module]
        for name in found:
            names.setdefault(name.partition(".")[0], set()).add(name)
    return names


MODULES = [pytest.param(room, path, id=path.relative_to(ROOT).as_posix()) for room, path in modules()]


def test_the_root_holds_the_prescribed_modules_and_nothing_else():
    assert {path.stem for path in ROOT.glob("*.py")} == {
        "audioaugmentations", "config", "data_processor", "final_training_medium", "prepro_add2radis", "redis_manager",
        "training_manager",
    }  # fmt: skip


@pytest.mark.parametrize(("room", "path"), MODULES)
def test_a_module_imports_only_what_its_room_may(room, path):
    ours = imports(path).keys() & {*TABLE, *PROGRAMS, "tests", "benchmarks", "examples"}
    if room in PROGRAMS:
        assert not ours & {"tests", "benchmarks", *(PROGRAMS - {"tools"} if room == "tools" else PROGRAMS)}
    else:
        assert ours - {room} <= TABLE[room]


@pytest.mark.parametrize(("room", "path"), MODULES)
def test_a_module_imports_no_package_that_its_job_forbids(room, path):
    assert not imports(path).keys() & NEVER.get(room, set())


def test_in_the_producing_room_only_the_report_and_the_card_know_the_queue():
    knowing = {path.stem for path in (ROOT / "producing").glob("*.py") if "sample_queue" in imports(path)}
    assert knowing == {"plan_card", "producer_report"}


def test_the_table_in_the_documentation_is_this_one():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.M)
    documented = {room: set(re.findall(r"`(\w+)`", allowed)) for room, allowed in rows}
    assert documented == TABLE


def test_no_import_goes_round_in_a_circle():
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): set().union(*imports(path).values(), set())
        for _, path in modules()
    }
    remaining = {name: targets & graph.keys() for name, targets in graph.items()}
    while leaves := {name for name, targets in remaining.items() if not targets}:
        remaining = {name: targets - leaves for name, targets in remaining.items() if name not in leaves}
    assert not remaining


def test_importing_every_module_does_nothing(tmp_path):
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for _, path in modules()]
    code = (
        f"import importlib, threading\nfor name in {names}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1"
    )
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


def test_a_worker_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'redis', 'librosa', 'datasets', 'audiomentations', 'fsspec', 'pyarrow', 'av'}"
    code = f"import sys, producing.sample_worker, producing.worker_pool\nprint(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
