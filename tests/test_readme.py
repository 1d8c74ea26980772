"""What the README names exists."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from config import AudioAugmentationConfig, DataConfig, ModelConfig, RedisConfig
from tests.sample_queue.test_connection import ACL_LINE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
GROUPS = {"redis": RedisConfig, "data": DataConfig, "model": ModelConfig, "audio_augmentation": AudioAugmentationConfig}


def test_the_file_tree_has_every_module_of_the_root_and_every_room():
    tree = README[README.index("## Files") : README.index("## How it works")]
    rooms = {f"{path.parent.name}/" for path in ROOT.glob("[a-z]*/__init__.py")}
    missing = [name for name in sorted(rooms | {path.name for path in ROOT.glob("*.py")}) if name not in tree]
    assert not missing


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_it_names_is_a_field(group):
    named = set(re.findall(rf"\b{group}\.(\w+)", README + SCALING)) - {"py", "conf"}
    assert named <= {field.name for field in dataclasses.fields(GROUPS[group])}


def test_every_make_target_it_names_is_there():
    targets = subprocess.run(["make", "-qp"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for target in set(re.findall(r"\bmake (\w+)`|^make (\w+)", README, re.M)):
        assert f"\n{''.join(target)}:" in targets


def test_the_acl_line_is_the_one_that_is_tested():
    assert ACL_LINE.replace("open-sesame", "PASSWORD") in README
    assert ACL_LINE.replace("open-sesame", "PASSWORD") in SCALING


def test_the_table_of_sizes_follows_from_the_measured_sample():
    kilobytes = float(re.search(r"takes (\d+) kB of Redis", README).group(1))
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \|$", README, re.M)
    assert len(rows) == 4
    for gigabytes, hours, samples in rows:
        fit = float(gigabytes) * 2**30 / (kilobytes * 1000)
        assert float(samples.replace(",", "")) == pytest.approx(fit, rel=0.02)
        assert float(hours) == pytest.approx(fit * 4.7 / 3600, rel=0.03)


def test_the_table_of_needs_follows_from_the_measured_figures():
    rate, kilobytes = map(float, re.search(r"(\d+) samples/s per core, ([\d.]+) kB", SCALING).groups())
    rows = re.findall(r"^\| ([\d,]+) samples/s[^|]* \| ([\d.]+) \| ([\d.]+) MB/s \| ([\d,]+) \|$", SCALING, re.M)
    assert len(rows) == 4
    for row in rows:
        samples_per_s, cores, megabytes, hours = (float(value.replace(",", "")) for value in row)
        assert cores == pytest.approx(samples_per_s / rate, abs=0.05)
        assert megabytes == pytest.approx(samples_per_s * kilobytes / 1000, rel=0.02)
        assert hours == pytest.approx(samples_per_s * 4.7, rel=0.01)


def test_the_tests_that_show_the_guarantees_are_there():
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    named = re.findall(r"`(tests/[\w/]*test_\w+\.py)`", GUARANTEES)
    assert len(named) >= 6
    assert set(named) <= set(sources)
    names = re.findall(r"`(test_\w+)…?`", GUARANTEES)
    assert len(names) >= 15
    everything = "\n".join(sources.values())
    assert not [name for name in names if f"def {name}" not in everything]
