"""The log of a run: a line per logged step, and on request a line per trained micro-batch."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from common.errors import UserError
from common.files import cannot_write
from training.metrics import RATES

logger = logging.getLogger(__name__)


class SamplesLogError(UserError):
    """The record of what was trained cannot be written."""


class LogLine(TrainerCallback):
    """Writes one line per logged step, readable in a terminal and in a file."""

    def __init__(self, model_step: Callable[[], int]) -> None:
        """
        Args:
            model_step: tells how many optimizer steps are behind the model.
        """
        self._model_step = model_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Logs training losses and evaluations; the figures of the end are in the closing report."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            logger.info(
                "step %d/%d  epoch %.2f  loss %.4f  learning rate %.2e  queue %d samples, waited %.1f s for it",
                state.global_step, state.max_steps, logs.get("epoch", 0.0), logs["loss"], logs["learning_rate"],
                logs["queue_depth"], logs["queue_wait_s"],
            )  # fmt: skip
        elif "eval_loss" in logs:
            rates = "".join(f"  {name} {logs['eval_' + name]:.4f}" for name in RATES if "eval_" + name in logs)
            logger.info(
                "evaluation of the model at step %d: loss %.4f%s  (%.0f s)",
                self._model_step(), logs["eval_loss"], rates, logs.get("eval_runtime", 0.0),
            )  # fmt: skip


TAIL_BYTES = 2**20
"""How much of the record is read at the start, in bytes: more than the lines of one step."""


def lines_behind_weights(path: Path) -> list[dict[str, Any]]:
    """The lines of `trained_samples.jsonl` that led to the weights that the last session ended with.

    A session that goes on from a checkpoint of step k begins with step k + 1. Lines of earlier sessions from that step
    on do not count, because their weights were dropped; nor do lines that processes of earlier sessions write later.
    """
    lines: list[dict[str, Any]] = []
    sessions: list[str] = []
    with path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if line["session"] not in sessions:
                sessions.append(line["session"])
                lines = [earlier for earlier in lines if earlier["step"] < line["step"]]
            if line["session"] == sessions[-1]:
                lines.append(line)
    return lines


class SamplesLog:
    """`trained_samples.jsonl`: what was trained, appended a step at a time.

    A step's lines are written together when it is done, so that a step that a crash interrupted leaves none.
    `lines_behind_weights` picks the lines that count when steps were trained again after a resume. A line that a full
    disk cut short is removed at the next start: its step has no checkpoint, and is trained again.
    """

    def __init__(self, path: Path, rank: int, session: str) -> None:
        """
        Args:
            path: the file; all ranks append to it.
            rank: this process's.
            session: names this start of the trainer; the same for all ranks.

        Raises:
            SamplesLogError: it cannot be written.
        """
        self._path, self._origin = path, {"rank": rank, "session": session}
        self._micro_batches: list[dict[str, Any]] = []
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._descriptor).st_size
            tail = os.pread(self._descriptor, min(size, TAIL_BYTES), max(0, size - TAIL_BYTES))
            if tail and not tail.endswith(b"\n"):
                os.ftruncate(self._descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
        except OSError as error:
            raise self._cannot_write(error) from error

    @property
    def is_removed(self) -> bool:
        """Whether the file was removed, so that what is still written to it is lost."""
        return not self._path.exists()

    def note(self, positions: list[int], ids: list[str], loss: float) -> None:
        """Keeps a micro-batch of the step that is running, and its mean loss per label token, until `write_step`."""
        self._micro_batches.append({"positions": positions, "ids": ids, "loss": round(loss, 6)})

    def write_step(self, step: int) -> None:
        """Appends the lines of a step that is done, in a single write, so that other ranks do not write between them.

        Raises:
            SamplesLogError: the disk is full.
        """
        lines = ({"step": step, **self._origin, **micro_batch} for micro_batch in self._micro_batches)
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._cannot_write(error) from error
        self._micro_batches.clear()

    def sync(self) -> None:
        """Syncs the record to the disk, so that after a power cut it is not behind its checkpoint.

        Raises:
            OSError: the disk is full or gone.
        """
        os.fsync(self._descriptor)

    def _cannot_write(self, error: OSError) -> SamplesLogError:
        remedy = (
            "make room, or set --model.log_samples False, and start again; what was trained since the last complete "
            "checkpoint is trained again"
        )
        return cannot_write(SamplesLogError, self._path, error, remedy)
