"""Checkpoints that are used only when they are complete.

Hugging Face writes a checkpoint file by file, and takes the highest number for the newest. A process that dies while
saving leaves an incomplete folder with a checkpoint's name. Here a checkpoint is used only if it has a marker file,
which is written last, after everything else has reached the disk.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_callback import ExportableState, TrainerCallback

from common.errors import UserError, one_line
from common.files import sync, written_whole

logger = logging.getLogger(__name__)

MARKER = "complete.json"
"""File that makes a checkpoint complete: its position, step and plan."""
TRAINER_STATE = "trainer_state.json"
"""Hugging Face's file with the state of the run, the last one it writes."""
_FOLDER = re.compile(r"checkpoint-(\d+)")
_TORCH_CANNOT_WRITE = re.compile("writ|open file|directory|iostream|inline_container")
"""Found in the RuntimeErrors that `torch.save` raises when it could not write."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, or not be read."""


class ForeignCheckpointError(CheckpointError):
    """The output folder holds checkpoints of another plan, or of another program."""


class OutputRemovedError(UserError):
    """The output folder was removed while the run was under way."""

    def __init__(self, output_dir: Path) -> None:
        super().__init__(
            f"{output_dir} was removed, or emptied, while the run was under way: put it back if you can, and start "
            "again, to go on from the newest complete checkpoint in it"
        )


@dataclass(eq=False)
class Progress(TrainerCallback, ExportableState):
    """What a run has done, all its sessions together; the trainer keeps it in the checkpoint's `trainer_state.json`."""

    position: int = 0
    """All samples before this position of the plan have been trained."""
    plan: str = ""
    """Fingerprint of the plan."""
    trained_s: float = 0.0
    """Audio that has been trained, in seconds."""
    training_s: float = 0.0
    """Time spent, evaluation included, in seconds."""
    waited_s: float = 0.0
    """Time of it spent waiting for samples, in seconds."""
    judged_by: str = ""
    """Metric and evaluation manifest by which the best model was found; empty without one."""
    learning_rate: float = 0.0
    """Configured peak learning rate; 0 in checkpoints of earlier versions."""
    trained_by_corpus: dict[str, int] = field(default_factory=dict)
    """Samples that have been trained of each corpus of a mixture."""

    def state(self) -> dict[str, Any]:
        """What Hugging Face stores: no arguments to construct with, and the attributes to set."""
        return {"args": {}, "attributes": asdict(self)}


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    """Optimizer steps behind it."""
    position: int
    """All samples before this position of the plan have been trained."""
    plan: str
    """Fingerprint of the plan."""
    progress: Progress = field(default_factory=Progress, compare=False)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turns failures to write (a full disk, a removed folder) into one line.

    Raises:
        CheckpointError: writing failed.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(str(error).partition("\n")[0])
        if isinstance(error, RuntimeError):
            if not _TORCH_CANNOT_WRITE.search(str(error)):
                raise
            reason = f"a file could not be written ({reason})"
        raise CheckpointError(
            f"cannot save {folder}: {reason}; make room, or choose another --model.output_dir, and start again; what "
            "was trained since the last complete checkpoint is trained again"
        ) from error


def mark_complete(path: Path, *, position: int, step: int, plan: str) -> None:
    """Syncs everything in a checkpoint folder to the disk, then writes the marker.

    Raises:
        OSError: the disk is full or gone; the checkpoint then stays incomplete.
    """
    for folder, _, files in os.walk(path):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    with written_whole(path / MARKER, durable=True) as file:
        file.write(json.dumps({"position": position, "step": step, "plan": plan}).encode())
    sync(path.parent)


def unmark(path: Path) -> None:
    """Marks a checkpoint as incomplete. Called before anything in it changes."""
    (path / MARKER).unlink(missing_ok=True)
    if path.is_dir():
        sync(path)


def newest_complete(output_dir: Path, plan: str) -> Checkpoint | None:
    """The checkpoint to go on from: of those that are complete, the one with the most steps.

    Args:
        output_dir: folder with the `checkpoint-N` folders; need not exist.
        plan: fingerprint of the plan that is being trained.

    Returns:
        None when nothing complete is there.

    Raises:
        ForeignCheckpointError: the checkpoints belong to another plan, or were not made by this program.
        CheckpointError: the newest one is damaged.
    """
    folders = _folders(output_dir)
    complete = [path for path in folders if (path / MARKER).is_file()]
    for path in set(folders) - set(complete):
        _refuse_other_programs(path)
    if not complete:
        return None
    checkpoint = _read(complete[-1])
    if checkpoint.plan != plan:
        raise ForeignCheckpointError(
            f"{checkpoint.path} belongs to another plan ({checkpoint.plan[:12]}, this run's is {plan[:12]}): the "
            "manifest, the seed, the augmentation or the model has changed. Choose another --model.output_dir, or go "
            "back to what it was"
        )
    return checkpoint


def remove_incomplete(output_dir: Path) -> None:
    """Removes incomplete checkpoint folders, which a process that died left behind, with a log line each.

    Call it after `newest_complete`, which refuses folders that another program made.
    """
    for path in _folders(output_dir):
        if not (path / MARKER).is_file():
            logger.warning("removing %s: it is incomplete, its writer died while saving", path)
            shutil.rmtree(path)


def rotate(output_dir: Path, keep: int, best: Path | None) -> None:
    """Removes the oldest complete checkpoints. The best one is kept, and counts.

    Args:
        output_dir: folder with the `checkpoint-N` folders.
        keep: complete checkpoints to leave, at least 2 if one of them is the best.
        best: the best checkpoint, or None.
    """
    complete = [path for path in _folders(output_dir) if (path / MARKER).is_file()]
    others = [path for path in complete if best is None or path.name != best.name]
    surplus = len(complete) - keep
    for path in others[: max(0, min(surplus, len(others) - 1))]:
        unmark(path)  # first: if this process dies while removing, the rest must not be used
        shutil.rmtree(path)


def _folders(output_dir: Path) -> list[Path]:
    """Checkpoint folders, fewest steps first."""
    candidates: Iterable[Path] = output_dir.iterdir() if output_dir.is_dir() else ()
    numbered = [(match, path) for path in candidates if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered)]


def _read(path: Path) -> Checkpoint:
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        state = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        progress = Progress(**state["stateful_callbacks"][Progress.__name__]["attributes"])
        checkpoint = Checkpoint(path, int(marker["step"]), int(marker["position"]), str(marker["plan"]), progress)
        step = int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error!r}): remove that folder to go on from the one before"
        ) from error
    found = (step, progress.position, progress.plan)
    if found != (checkpoint.step, checkpoint.position, checkpoint.plan):
        raise CheckpointError(
            f"{path} is damaged: {MARKER} says step {checkpoint.step}, position {checkpoint.position}, plan "
            f"{checkpoint.plan}, but {TRAINER_STATE} {found[0]}, {found[1]}, {found[2]}; remove that folder to go on "
            "from the one before"
        )
    return checkpoint


def _refuse_other_programs(path: Path) -> None:
    """A complete checkpoint of another program must not be deleted: it has no `Progress` in its state."""
    try:
        state = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # this program's: it died before or while it wrote the last file
    if Progress.__name__ not in state.get("stateful_callbacks", {}):
        raise ForeignCheckpointError(f"{path} was not made by this program: choose another --model.output_dir")
