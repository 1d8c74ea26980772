"""How long `tools.check` takes on many files.

    python benchmarks/corpus_check.py            # a table; --json FILE writes the figures as well

20,000 FLAC files of 3 to 5 s, copies of 200 clips, in the page cache, on all cores of this machine: the whole program
from its start to its report, with the scan, without and with --deep. Seconds, and seconds of CPU time, which other work
on the machine disturbs less.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from benchmarks.clips import make_clips
from examples.make_tiny_checkpoint import make_tiny_checkpoint


@dataclass
class Settings:
    """What the command line sets."""

    json: Path | None = None
    """File for the figures."""
    files: int = 20_000
    """Files to look at."""


def write_files(folder: Path, count: int) -> Path:
    """Copies clips to `count` files of their own. Returns the manifest."""
    make_clips(folder / "clips")
    with (folder / "clips" / "metadata.csv").open(encoding="utf-8") as file:
        clips = list(csv.DictReader(file))
    (folder / "files").mkdir()
    manifest = folder / "train.jsonl"
    with manifest.open("w", encoding="utf-8") as lines:
        for number in range(count):
            clip = clips[number % len(clips)]
            shutil.copyfile(folder / "clips" / clip["audio"], folder / "files" / f"{number:06}.flac")
            lines.write(json.dumps({"audio": f"files/{number:06}.flac", "text": f"{clip['text']} {number}"}) + "\n")
    return manifest


def measure(manifest: Path, checkpoint: Path, cache: Path, *flags: str) -> tuple[float, float]:
    """Seconds that the program takes, and seconds of CPU time of all its processes."""
    settings = [f"--model.model_name={checkpoint}", "--model.language=English", f"--data.cache_dir={cache}"]
    command = [sys.executable, "-m", "tools.check", str(manifest), "--json", *flags, *settings]
    before, started = os.times(), time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return time.monotonic() - started, used


def main() -> None:
    """Measures and prints."""
    settings, figures = tyro.cli(Settings, description=__doc__), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = folder / "checkpoint"
        make_tiny_checkpoint(ROOT / "examples" / "digits" / "train" / "metadata.csv", checkpoint, chunk_length=30)
        manifest = write_files(folder, settings.files)
        for name, flags in (("check", ()), ("check --deep", ("--deep",))):
            figures[f"{name}, s"], figures[f"{name}, s of CPU"] = measure(manifest, checkpoint, folder / name, *flags)
    for name, value in figures.items():
        print(f"{name:<25}{value:>8.1f}")
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
