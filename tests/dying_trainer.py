"""The trainer script, killed with -9 at every boundary of its first save, one process after another.

    python -m tests.dying_trainer 1 [flags of final_training_medium.py]    # every boundary; 3: every third one

A boundary is a moment between two things that the trainer does to the world: before it trains a micro-batch, opens,
renames or removes a file of a checkpoint, commits, and after that. The first process dies at the first boundary, the
next one, which starts as the script does, at the second, and so on to the end of the first complete save; at those
within the save a second process dies with the latest file cut in half. The last process trains to the end.

Prints the name of each boundary at which a process died. The processes are forks of one that has only imported the
libraries, which takes longer than all that they do.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils

import final_training_medium
from common import command_line
from sample_queue.reader import SampleReader
from training.checkpoints import MARKER
from training.stream_trainer import StreamTrainer

LAST = "after the commit"
CHECKPOINT = "/checkpoint-"
WRITES = os.O_WRONLY | os.O_RDWR


class Boundaries:
    """Counts the boundaries that this process passes, and kills it at one of them."""

    def __init__(self, die_at: int, torn: bool, tell: int) -> None:
        """
        Args:
            die_at: number of the boundary to die at, from 0; -1: none.
            torn: cut the latest file of the unfinished checkpoint in half before.
            tell: file descriptor that gets the name of the boundary.
        """
        self._die_at, self._torn, self._tell = die_at, torn, tell
        self._passed, self._pid = 0, os.getpid()

    def passed(self, name: str) -> None:
        """The process is at a boundary."""
        if os.getpid() != self._pid:  # a DataLoader worker
            return
        if self._passed == self._die_at:
            torn = self._tear() if self._torn else ""
            os.write(self._tell, (name + torn).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self._passed += 1

    def _tear(self) -> str:
        """Cuts the latest file of the newest checkpoint in half, if that is not complete: no crash tears what was."""
        folders = sorted(output_dir().glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if not folders or (folders[-1] / MARKER).exists():
            return ""
        files = [path for path in folders[-1].iterdir() if path.is_file()]
        if not files:
            return ""
        latest = max(files, key=lambda path: path.stat().st_mtime_ns)
        os.truncate(latest, latest.stat().st_size // 2)
        return f", {latest.name} torn"

    def watch(self) -> None:
        """Sees to it that `passed` is called at every boundary of this process."""
        sys.addaudithook(self._audit)
        self._around(torch, "save", file_name)
        self._around(transformers.modeling_utils, "safe_save_file", file_name)
        self._around(StreamTrainer, "training_step", lambda *arguments: "the micro-batch")
        self._around(SampleReader, "commit", lambda *arguments: "the commit")

    def _around(self, owner: Any, name: str, describe: Callable[..., str]) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*arguments: Any, **options: Any) -> Any:
            self.passed("before " + describe(*arguments))
            result = function(*arguments, **options)
            self.passed("after " + describe(*arguments))
            return result

        setattr(owner, name, watched)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's own file operations on a checkpoint. (torch, safetensors and tokenizers write by themselves.)"""
        path = str(arguments[0]) if arguments and isinstance(arguments[0], str | os.PathLike) else ""
        if event == "open" and CHECKPOINT in path and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self.passed(f"before {Path(path).name}")
        elif event == "os.rename" and CHECKPOINT in path:
            self.passed(f"before the renaming of {Path(path).name}")
        elif event in ("os.remove", "shutil.rmtree") and (CHECKPOINT in path or "checkpoint" in path):
            self.passed(f"before the removal of {Path(path).name}")


def output_dir() -> Path:
    """Where the checkpoints are."""
    return Path(next(word for word in sys.argv if word.startswith("--model.output_dir=")).partition("=")[2])


def file_name(content: Any, file: str | os.PathLike[str], *rest: Any) -> str:
    """The file that is written."""
    return Path(file).name


def run_child(boundary: int, torn: bool, tell: int) -> None:
    """What a process of the script does; never returns."""
    Boundaries(boundary, torn, tell).watch()
    command_line.run(final_training_medium.main)


def run_in_child(boundary: int, torn: bool) -> str:
    """Forks a trainer. Returns the boundary at which it died; empty: it came to its end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        run_child(boundary, torn, write)
    os.close(write)
    name = os.read(read, 1000).decode()  # its DataLoader workers hold the pipe open: read only what it tells
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(read)
    if code not in (0, -signal.SIGKILL) or (code == 0) == bool(name):
        raise SystemExit(f"boundary {boundary} {name!r}: the trainer ended with {code}")
    return name


def main() -> None:
    """Kills one trainer after another."""
    every = int(sys.argv.pop(1))
    torch.set_num_threads(1)
    for boundary in itertools.count(0, every):
        name = run_in_child(boundary, torn=False)
        print(name, flush=True)
        if "." in name:
            print(run_in_child(boundary, torn=True), flush=True)
        saved = any(output_dir().glob(f"checkpoint-*/{MARKER}"))
        if name == LAST or (saved and "micro-batch" in name):
            break
    run_in_child(-1, torn=False)


if __name__ == "__main__":
    main()
