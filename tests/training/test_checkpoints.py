"""Which checkpoint a run goes on from, and which never count."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest

from training.checkpoints import (
    MARKER,
    TRAINER_STATE,
    CheckpointError,
    ForeignCheckpointError,
    Progress,
    mark_complete,
    newest_complete,
    remove_incomplete,
    rotate,
    saving,
    unmark,
)

PLAN = "0123456789abcdef"


def write_unfinished(folder: Path, step: int, position: int, plan: str = PLAN) -> Path:
    """A checkpoint folder as Hugging Face leaves it, without our marker."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    progress = Progress(position=position, plan=plan)
    state = {"global_step": step, "stateful_callbacks": {"Progress": progress.state()}}
    (path / TRAINER_STATE).write_text(json.dumps(state))
    return path


def write_complete(folder: Path, step: int, position: int, plan: str = PLAN) -> Path:
    path = write_unfinished(folder, step, position, plan)
    mark_complete(path, position=position, step=step, plan=plan)
    return path


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def test_a_folder_without_checkpoints_starts_from_nothing(tmp_path):
    assert newest_complete(tmp_path, PLAN) is None
    assert newest_complete(tmp_path / "does not exist", PLAN) is None


def test_the_complete_checkpoint_with_the_most_steps_is_chosen(tmp_path):
    for step in (9, 100, 20):  # by number, not by name
        write_complete(tmp_path, step, 8 * step)
    checkpoint = newest_complete(tmp_path, PLAN)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.position, checkpoint.path.name) == (100, 800, "checkpoint-100")


def test_an_incomplete_checkpoint_never_counts_and_is_removed_with_a_line_in_the_log(tmp_path, caplog):
    write_complete(tmp_path, 10, 80)
    write_unfinished(tmp_path, 20, 160)
    (tmp_path / "checkpoint-30").mkdir()
    checkpoint = newest_complete(tmp_path, PLAN)
    assert checkpoint is not None
    assert checkpoint.step == 10
    with caplog.at_level(logging.WARNING):
        remove_incomplete(tmp_path)
    assert steps_in(tmp_path) == [10]
    assert "checkpoint-20" in caplog.text
    assert "checkpoint-30" in caplog.text


def test_only_incomplete_checkpoints_start_from_nothing(tmp_path):
    write_unfinished(tmp_path, 20, 160)
    assert newest_complete(tmp_path, PLAN) is None


def test_progress_of_earlier_sessions_is_read_back(tmp_path):
    path = write_unfinished(tmp_path, 10, 80)
    state = json.loads((path / TRAINER_STATE).read_text())
    state["stateful_callbacks"]["Progress"] = Progress(80, PLAN, trained_s=12.5, training_s=3.0).state()
    (path / TRAINER_STATE).write_text(json.dumps(state))
    mark_complete(path, position=80, step=10, plan=PLAN)
    checkpoint = newest_complete(tmp_path, PLAN)
    assert checkpoint is not None
    assert checkpoint.progress.trained_s == 12.5


def test_a_checkpoint_of_another_plan_is_refused_with_a_remedy(tmp_path):
    write_complete(tmp_path, 10, 80, plan="another plan")
    with pytest.raises(ForeignCheckpointError, match=r"another plan.*--model.output_dir") as caught:
        newest_complete(tmp_path, PLAN)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_program_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "checkpoint-500"
    path.mkdir()
    (path / TRAINER_STATE).write_text(json.dumps({"global_step": 500, "stateful_callbacks": {"TrainerControl": {}}}))
    with pytest.raises(ForeignCheckpointError, match="not made by this program"):
        newest_complete(tmp_path, PLAN)
    assert path.is_dir()


@pytest.mark.parametrize("damage", ["position", "step", "no state", "empty marker", "no progress"])
def test_a_damaged_checkpoint_is_named_and_not_trusted(tmp_path, damage):
    path = write_complete(tmp_path, 10, 80)
    marker = json.loads((path / MARKER).read_text())
    if damage in marker:
        (path / MARKER).write_text(json.dumps(marker | {damage: 81}))
    elif damage == "no state":
        (path / TRAINER_STATE).unlink()
    elif damage == "empty marker":
        (path / MARKER).write_text("")
    else:
        (path / TRAINER_STATE).write_text(json.dumps({"global_step": 10, "stateful_callbacks": {}}))
    with pytest.raises(CheckpointError, match=r"checkpoint-10 is damaged.*remove that folder"):
        newest_complete(tmp_path, PLAN)


def test_rotation_keeps_the_newest_and_counts_complete_checkpoints_only(tmp_path):
    for step in (10, 20, 30):
        write_complete(tmp_path, step, 8 * step)
    write_unfinished(tmp_path, 40, 320)
    rotate(tmp_path, keep=2, best=None)
    assert steps_in(tmp_path) == [20, 30, 40]


def test_rotation_keeps_the_best_and_the_newest(tmp_path):
    for step in (10, 20, 30):
        write_complete(tmp_path, step, 8 * step)
    rotate(tmp_path, keep=2, best=Path("moved here from elsewhere") / "checkpoint-10")
    assert steps_in(tmp_path) == [10, 30]


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_rotation_never_removes_the_newest_one(tmp_path, keep):
    for step in (10, 20, 30):
        write_complete(tmp_path, step, 8 * step)
    rotate(tmp_path, keep=keep, best=tmp_path / "checkpoint-10")
    assert 30 in steps_in(tmp_path)
    assert 10 in steps_in(tmp_path)


def test_a_checkpoint_that_is_written_again_is_incomplete_meanwhile(tmp_path):
    path = write_complete(tmp_path, 10, 80)
    unmark(path)
    unmark(path)
    assert newest_complete(tmp_path, PLAN) is None
    unmark(tmp_path / "checkpoint-20")  # not there yet


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2966464 vs 2966356"),
    ],
)
def test_a_full_disk_is_told_in_one_line(tmp_path, error):
    with pytest.raises(CheckpointError, match=r"cannot save .*make room") as caught, saving(tmp_path):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_while_saving_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), saving(tmp_path):
        raise RuntimeError("shapes do not match")
