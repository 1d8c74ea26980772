"""Workers die at any moment, and their tasks are done all the same."""

from __future__ import annotations

import os
import signal
import threading
import tracemalloc
from pathlib import Path

import psutil

from common.process_executor import ProcessExecutor


def test_a_worker_killed_before_it_has_read_what_it_is_to_do_is_replaced() -> None:
    """What it is to read is far more than a pipe holds: nobody may wait for a dead worker to read it."""
    killed = threading.Event()

    def kill_the_first() -> None:
        while not killed.is_set():
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    killed.set()

    assassin = threading.Thread(target=kill_the_first, daemon=True)
    assassin.start()
    with ProcessExecutor(1, len, (b"." * 2**22,)) as executor:
        assert executor.submit(pow, 2, 10).result(timeout=30) == 1024
    assassin.join(5)
    assert killed.is_set()


def make_payloads(count: int, size: int) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


def test_an_answer_is_received_without_a_second_copy_of_it() -> None:
    count, size = 64, 100_000
    with ProcessExecutor(1) as executor:
        executor.submit(make_payloads, 1, 1).result(timeout=30)
        tracemalloc.start()
        try:
            answer = executor.submit(make_payloads, count, size).result(timeout=30)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert [len(payload) for payload in answer] == [size] * count
    assert peak < 1.2 * held, "`pipe.recv()` needs more than twice as much"


class KillsItsWriter:
    """Ends the process that pickles it, the first time."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return str, ("whole",)


def answer_in_parts(mark: Path) -> tuple[bytes, KillsItsWriter]:
    return b"." * 2**20, KillsItsWriter(mark)


def test_half_an_answer_is_no_answer(tmp_path: Path) -> None:
    with ProcessExecutor(1) as executor:
        answer = executor.submit(answer_in_parts, tmp_path / "mark").result(timeout=60)
    assert answer == (b"." * 2**20, "whole")
    assert (tmp_path / "mark").exists()
