"""Workers make the same bytes however many they are and whatever happens to them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

import audioaugmentations
from common.process_executor import MAX_DEATHS, WorkerError
from features.sample import SampleLimits, decode_sample
from producing.recipe import StreamRecipe, absolute_path
from producing.sample_worker import SampleError
from producing.worker_pool import SampleMaker, WorkerPool


def never() -> None:
    """A heartbeat nobody listens to."""


def stream(recipe: StreamRecipe, workers: int) -> list[bytes]:
    payloads: list[bytes] = []
    with WorkerPool(recipe, workers) as pool:
        while len(payloads) < len(recipe.plan):
            payloads += pool.chunk_at(len(payloads), never).payloads
    return payloads


def test_one_worker_and_three_make_the_same_bytes_as_this_process(make_recipe):
    recipe = make_recipe()
    alone = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    assert len(alone) == 12 * 2 * 5
    assert stream(recipe, 1) == alone
    assert stream(recipe, 3) == alone


def test_chunks_may_be_of_any_size_and_begin_anywhere(make_recipe):
    alone = SampleMaker(make_recipe()).make_chunk(0, 120).payloads
    recipe = make_recipe({"chunk_size": 7})
    assert stream(recipe, 2) == alone
    with WorkerPool(recipe, 2) as pool:
        for position in (50, 57, 3, 119, 0):
            chunk = pool.chunk_at(position, never)
            assert chunk.payloads == alone[position : position + 7]


def test_with_several_augmentations_per_copy_the_stream_repeats_too(make_recipe):
    recipe = make_recipe(augmentation={"multiple_aug": True})
    maker = SampleMaker(recipe)
    first, second = maker.make_chunk(0, 40), SampleMaker(recipe).make_chunk(0, 40)
    assert first.payloads == second.payloads
    assert maker.make_chunk(30, 40).payloads == first.payloads[30:]


def test_a_sample_says_what_it_is(make_recipe):
    recipe = make_recipe()
    chunk = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
    seen = Counter()
    for position, payload in enumerate(chunk.payloads):
        limits = SampleLimits(num_mel_bins=80, window_frames=400, max_tokens=449, vocabulary=51866)
        sample = decode_sample(payload, key="k", position=position, plan=recipe.fingerprint, limits=limits)
        draw = recipe.plan.draw(position)
        assert sample.id == f"r{draw.row}"
        np.testing.assert_array_equal(sample.labels, recipe.encoder.encode(f"text {draw.row}"))
        assert sample.input_features.dtype == np.float16
        assert (sample.augmentation == "original") == (draw.variant == 0)
        name, _, option = sample.augmentation.partition("=")
        if name == "speed":
            assert sample.duration_s == pytest.approx((1 + draw.row / 12) / float(option), abs=0.01)
        else:
            assert sample.duration_s == pytest.approx(1 + draw.row / 12, abs=0.01)
        seen[name] += 1
    assert seen == chunk.augmentations
    assert seen["original"] == 60
    assert set(seen) == {"original", *audioaugmentations.enabled_augmentations(recipe.config.audio_augmentation)}


def test_a_recording_that_fails_late_is_replaced_and_reported(make_recipe, tmp_path):
    recipe = make_recipe({"max_rejected_fraction": 0.5})
    before = SampleMaker(recipe).make_chunk(0, 120).payloads
    (tmp_path / "clips" / "5.flac").write_bytes(b"not audio any more")
    chunk = SampleMaker(recipe).make_chunk(0, 120)
    hit = [position for position in range(120) if recipe.plan.draw(position).row == 5]
    reports = [json.loads(line) for line in chunk.rejected]
    assert {report["position"] for report in reports} == set(hit)
    assert all(report["id"] == "r5" and "not readable" in report["reason"] for report in reports)
    assert [p for p in range(120) if chunk.payloads[p] != before[p]] == hit
    for position in hit:
        drawn = (recipe.plan.replacement(position, attempt) for attempt in range(1, 20))
        assert f'"id":"r{next(row for row in drawn if row != 5)}"' in header_of(chunk.payloads[position])
    assert SampleMaker(recipe).make_chunk(0, 120).payloads == chunk.payloads


def header_of(payload: bytes) -> str:
    """The beginning of a sample, without blanks and escapes."""
    return payload[:2000].decode("utf-8", "replace").replace(" ", "").replace("\\", "")


def test_workers_hear_the_rooms_that_the_producer_has_made(make_recipe):
    recipe = make_recipe()
    (name, content), *others = recipe.prepared.items()
    assert not others
    with np.load(io.BytesIO(content)) as rooms:
        silenced = {room: np.where(np.arange(len(taps)) == 40, taps, 0) for room, taps in rooms.items()}
    changed = io.BytesIO()
    np.savez(changed, allow_pickle=False, **silenced)
    without_echo = dataclasses.replace(recipe, prepared={name: changed.getvalue()})
    before, after = stream(recipe, 1), stream(without_echo, 1)
    differing = {
        header_of(a).partition('"augmentation":"')[2].partition("=")[0]
        for a, b in zip(before, after, strict=True)
        if a != b
    }
    assert differing == {"far_field"}


def test_paths_mean_the_same_to_workers_in_another_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute_path("clips/1.flac") == str(tmp_path / "clips" / "1.flac")
    assert absolute_path("/data/1.flac") == "/data/1.flac"
    assert absolute_path("s3://bucket/1.flac") == "s3://bucket/1.flac"


def test_when_nothing_can_be_decoded_the_run_stops(make_recipe, tmp_path):
    recipe = make_recipe()
    for path in (tmp_path / "clips").iterdir():
        path.unlink()
    with WorkerPool(recipe, 1) as pool, pytest.raises(WorkerError, match=r"disk still mounted.*file not found"):
        pool.chunk_at(0, never)


def test_killed_workers_change_nothing(make_recipe):
    recipe = make_recipe({"epochs": 10, "chunk_size": 20})
    expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
    payloads: list[bytes] = []
    with WorkerPool(recipe, 2) as pool:
        while len(payloads) < len(recipe.plan):
            payloads += pool.chunk_at(len(payloads), never).payloads
            if len(payloads) % 80 == 0:
                os.kill(child_workers()[0].pid, signal.SIGKILL)
    assert payloads == expected


def child_workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


class Deadly:
    """Kills every worker that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_workers_that_die_again_and_again_end_the_run_with_a_reason(make_recipe):
    deadly = dataclasses.replace(make_recipe(), encoder=Deadly())
    with (
        WorkerPool(deadly, 1) as pool,
        pytest.raises(WorkerError, match=f"{MAX_DEATHS} workers in a row died.*num_workers"),
    ):
        pool.chunk_at(0, never)


class NoEncoder:
    """Fails on every transcript."""

    def encode(self, transcript: str, language: str, task: str) -> object:
        raise ZeroDivisionError("a fault\nof the program")


def test_an_unexpected_exception_is_told_with_recording_and_position(make_recipe, tmp_path, capfd):
    recipe = dataclasses.replace(make_recipe(), encoder=NoEncoder())
    row = recipe.plan.draw(0).row
    audio = tmp_path / "clips" / f"{row}.flac"
    expected = rf"^cannot make the sample at position 0 \(recording r{row}, {audio}, .*\): ZeroDivisionError: a fault"
    with WorkerPool(recipe, 1) as pool, pytest.raises(SampleError, match=expected) as caught:
        pool.chunk_at(0, never)
    assert "\n" not in str(caught.value)
    output = capfd.readouterr().err
    assert "in encode" in output
    assert "died" not in output


def test_a_file_that_is_no_more_than_its_header_is_replaced(write_recording, write_manifest, recipe_of):
    rows = [{"audio": write_recording(f"{i}.wav", duration_s=float(i > 0)).name, "text": "one"} for i in range(6)]
    recipe = recipe_of(write_manifest(rows), min_duration_s=0, max_rejected_fraction=0.5, epochs=1)
    chunk = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
    assert all(chunk.payloads)
    if len(recipe.recordings) == 6:  # else the scan has rejected it
        assert {(json.loads(line)["id"], json.loads(line)["reason"]) for line in chunk.rejected} == {
            (recipe.recordings[0].id, "empty: no audio in it")
        }


def test_the_heartbeat_goes_on_while_a_chunk_takes_long(make_recipe):
    beats = []
    with WorkerPool(make_recipe({"chunk_size": 1}), 1) as pool:
        pool.chunk_at(0, never)
        for worker in child_workers():
            worker.suspend()
        pool.chunk_at(100, lambda: beats.append([worker.resume() for worker in child_workers()]))
    assert beats


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
def test_a_pool_that_is_left_while_its_workers_start_leaves_none(make_recipe, after_s):
    recipe = make_recipe()
    with WorkerPool(recipe, 2) as pool:
        pool._submit_from(0)
        time.sleep(after_s)
    assert child_workers() == []


ORPHAN = """
import os, pickle, sys, time
from producing.worker_pool import WorkerPool
if __name__ == "__main__":
    recipe = pickle.load(open(sys.argv[1], "rb"))
    with WorkerPool(recipe, 2) as pool:
        pool.chunk_at(0, lambda: None)
        print("ready", flush=True)
        time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(make_recipe, tmp_path):
    (tmp_path / "recipe").write_bytes(pickle.dumps(make_recipe()))
    (tmp_path / "parent.py").write_text(ORPHAN)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "recipe")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)


def test_workers_do_not_get_the_password_of_redis(make_recipe):
    recipe = make_recipe()
    recipe.config.redis.url = "redis://:open-sesame@host"
    assert b"open-sesame" not in pickle.dumps(recipe.for_workers())
    assert recipe.config.redis.url
