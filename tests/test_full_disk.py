"""A disk that is full, and a folder that goes away: one clear line, and the same command goes on from there."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from corpus.rejected_report import LateRejection, LateRejections, RejectedReportError, write_report
from tests.runs import PRODUCER, TRAINER, Run, Script, ending, trained_positions, wait_until
from training.checkpoints import MARKER
from training.log import SamplesLog, SamplesLogError

PLANNED = 200
"""Samples of a run here: 50 steps, a checkpoint each 10."""


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run(data__epochs=5, model__save_steps=10)


def newest_position(run: Run) -> int:
    """Where the newest complete checkpoint stands."""
    return max((json.loads(path.read_text())["position"] for path in run.output_dir.glob(f"*/{MARKER}")), default=0)


def only_error(script: Script) -> str:
    """The one line with which a script gave up."""
    code, _, err = script.finish()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), err
    assert "Traceback" not in err
    return errors[0]


def assert_the_queue_holds_what_is_not_committed(run: Run) -> None:
    status = run.status()
    assert status["position"] == newest_position(run)
    assert status["position"] + status["inflight"] == status["head"]
    assert status["head"] + status["depth"] == status["tail"] == PLANNED


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder."""
    return shutil.disk_usage(folder).free


def limit_file_size(script: Script, size: int) -> None:
    """From now on the script's files can't grow beyond `size` bytes: a write fails as on a full disk."""
    psutil.Process(script.pid).rlimit(psutil.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("size", "torn_files"), [(2_000_000, set()), (8_000_000, {"model.safetensors", "optimizer.pt"})]
)
def test_a_checkpoint_that_does_not_fit_is_told_and_the_same_command_goes_on(
    run: Run, size: int, torn_files: set[str]
) -> None:
    assert run.finish(PRODUCER)[0] == 0
    with ending(run.start(TRAINER)) as (trainer,):
        wait_until(lambda: newest_position(run) > 0, pause_s=0.01)
        limit_file_size(trainer, size)
        error = only_error(trainer)
    assert "cannot save" in error
    assert "make room" in error
    assert 0 < newest_position(run) < PLANNED
    torn = [path for path in run.output_dir.glob("checkpoint-*") if not (path / MARKER).exists()]
    assert len(torn) == 1
    assert {path.name for path in torn[0].iterdir() if path.suffix in (".safetensors", ".pt")} == torn_files
    assert_the_queue_holds_what_is_not_committed(run)
    with ending(run.start(PRODUCER)):
        assert run.finish(TRAINER)[0] == 0
    assert run.trained_positions() == list(range(PLANNED))


@pytest.fixture
def small_disk(run: Run) -> Iterator[Callable[[int], None]]:
    """Makes the output folder a file system of some megabytes; again: another size."""
    run.output_dir.mkdir()

    def resize(megabytes: int) -> None:
        again = ",remount" if run.output_dir.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m{again}", "tmpfs", str(run.output_dir)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"this user may not mount a tmpfs, so no disk of {megabytes} MB: {mounted.stderr.strip()}")

    yield resize
    if run.output_dir.is_mount():
        subprocess.run(["umount", str(run.output_dir)], check=True)


def test_a_disk_that_is_full_is_told_and_after_making_room_the_same_command_goes_on(
    run: Run, small_disk: Callable[[int], None]
) -> None:
    small_disk(24)  # one checkpoint takes 16 MB
    assert run.finish(PRODUCER)[0] == 0
    error = only_error(run.start(TRAINER))
    assert "cannot save" in error
    assert "make room" in error
    assert newest_position(run) == 40
    (run.output_dir / "filler").write_bytes(b"\0" * free_bytes(run.output_dir))
    assert "make room" in only_error(run.start(TRAINER))  # none has been made yet
    (run.output_dir / "filler").unlink()
    assert newest_position(run) == 40
    assert_the_queue_holds_what_is_not_committed(run)
    small_disk(100)
    with ending(run.start(PRODUCER)):
        assert run.finish(TRAINER)[0] == 0
    assert run.trained_positions() == list(range(PLANNED))


def test_a_record_that_cannot_be_written_ends_the_run_before_a_checkpoint_goes_beyond_it(run: Run) -> None:
    assert run.finish(PRODUCER)[0] == 0
    run.record.symlink_to("/dev/full")
    error = only_error(run.start(TRAINER))
    assert "trained_samples.jsonl: No space left on device" in error
    assert "make room" in error
    assert not list(run.output_dir.glob("checkpoint-*"))
    assert_the_queue_holds_what_is_not_committed(run)
    run.record.unlink()
    with ending(run.start(PRODUCER)):
        assert run.finish(TRAINER)[0] == 0
    assert run.trained_positions() == list(range(PLANNED))


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_an_output_folder_that_goes_away_is_told_and_its_run_goes_on(run: Run, how: str) -> None:
    """What trained_samples.jsonl held when it went away, and what it holds at the end, are every position once."""
    away = run.folder / "away"
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (producer, trainer):
        wait_until(lambda: newest_position(run) > 0, pause_s=0.01)
        if how == "removed":
            run.output_dir.rename(away)
        else:
            away.mkdir()
            for path in run.output_dir.iterdir():
                shutil.move(path, away / path.name)
        error = only_error(trainer)
        assert f"{run.output_dir} was removed, or emptied" in error
        assert "start again" in error
        saved = newest_position(run)
        before = trained_positions(away / "trained_samples.jsonl")
        assert before == list(range(saved))
        assert 0 < saved < PLANNED
        wait_until(lambda: run.status()["tail"] == PLANNED)
        assert run.status()["position"] <= saved
        assert run.finish(TRAINER)[0] == 0
        assert producer.finish()[0] == 0
    assert before + run.trained_positions() == list(range(PLANNED))


def test_a_line_that_a_full_disk_cut_short_is_taken_out_of_the_record(tmp_path: Path) -> None:
    path = tmp_path / "trained_samples.jsonl"
    whole = '{"step": 1, "rank": 0, "session": "a", "positions": [0, 1], "ids": ["a", "b"], "loss": 1.0}\n'
    path.write_text(whole + '{"step": 2, "rank": 0, "posit')
    log = SamplesLog(path, rank=0, session="a")
    assert path.read_text() == whole
    log.note([2, 3], ["c", "d"], 1.0)
    log.write_step(2)
    assert trained_positions(path) == [0, 1, 2, 3]
    path.write_text('{"step": 1, "ra')
    SamplesLog(path, rank=0, session="a")
    assert path.read_text() == ""


def test_a_full_disk_in_the_record_is_an_error_with_the_remedy() -> None:
    log = SamplesLog(Path("/dev/full"), rank=0, session="a")
    log.note([0], ["a"], 1.0)
    with pytest.raises(SamplesLogError, match=r"/dev/full: No space left on device; make room"):
        log.write_step(1)


def test_a_rejected_report_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    line = LateRejection(5, "f", "f.wav", "truncated", 8, "plan").to_json()
    report = tmp_path / "rejected.jsonl"
    report.touch()
    late = LateRejections(report, "plan")
    report.unlink()
    report.symlink_to("/dev/full")
    with pytest.raises(RejectedReportError, match=r"rejected.jsonl: No space left on device; make room"):
        late.add([line])


def test_a_rejection_that_a_full_disk_cut_short_is_noted_again(tmp_path: Path) -> None:
    report, scanned = tmp_path / "rejected.jsonl", tmp_path / "scanned.jsonl"
    scanned.touch()
    lines = [LateRejection(row, "f", "line\u2028break.wav", "truncated", row, "plan").to_json() for row in (1, 2)]
    report.write_text(lines[0] + "\n" + lines[1][:30])
    write_report(report, scanned)
    late = LateRejections(report, "plan")
    assert late.rows == 1
    late.add(lines)
    assert late.rows == 2
    with contextlib.closing(report.open()) as file:
        assert [json.loads(line)["row"] for line in file] == [1, 2]
