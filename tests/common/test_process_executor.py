"""Workers die at any moment, and their tasks are done all the same."""

from __future__ import annotations

import os
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import psutil
import pytest

from common.process_executor import MAX_DEATHS, ProcessExecutor, RemoteTracebackError, TaskError, WorkerError


class AwkwardError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def fail(how: str) -> object:
    if how == "simply":
        return os.environ["NO SUCH VARIABLE"]
    if how == "awkwardly":
        raise AwkwardError(1, 2)
    return lambda: None  # a result that can't be pickled


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Unreadable:
    """Can't be unpickled in a worker."""

    def __reduce__(self):
        return fail, ("simply",)


def test_whatever_a_task_raises_goes_to_its_future_and_the_worker_lives_on() -> None:
    with ProcessExecutor(1) as executor:
        pid = executor.submit(os.getpid).result(30)
        with pytest.raises(KeyError, match="NO SUCH VARIABLE") as caught:
            executor.submit(fail, "simply").result(30)
        assert isinstance(caught.value.__cause__, RemoteTracebackError)
        assert 'os.environ["NO SUCH VARIABLE"]' in str(caught.value.__cause__)
        with pytest.raises(TaskError, match="AwkwardError: 1 and 2"):
            executor.submit(fail, "awkwardly").result(30)
        with pytest.raises((AttributeError, TypeError), match=r"lambda|local object"):
            executor.submit(fail, "by its result").result(30)
        with pytest.raises(KeyError, match="NO SUCH VARIABLE"):
            executor.submit(repr, Unreadable()).result(30)
        with pytest.raises((AttributeError, TypeError), match=r"lambda|local object"):
            executor.submit(lambda: None)
        assert executor.submit(os.getpid).result(30) == pid


def test_what_an_initializer_raises_goes_to_the_tasks() -> None:
    with ProcessExecutor(1, fail, ("simply",)) as executor:
        for _ in range(2):
            with pytest.raises(KeyError, match="NO SUCH VARIABLE"):
                executor.submit(os.getpid).result(30)


def test_a_task_whose_workers_are_killed_is_given_up_after_three(caplog) -> None:
    with ProcessExecutor(1) as executor:
        with pytest.raises(WorkerError, match=f"{MAX_DEATHS} workers in a row died.*num_workers"):
            executor.submit(die).result(60)
        assert caplog.text.count("died (exit code -9)") == MAX_DEATHS
        assert executor.submit(pow, 2, 10).result(30) == 1024


def test_shutting_down_ends_a_worker_in_the_middle_of_a_task() -> None:
    executor = ProcessExecutor(1)
    executor.submit(os.getpid).result(30)
    executor.submit(time.sleep, 60)
    started = time.monotonic()
    executor.shutdown()
    assert time.monotonic() - started < 10


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


class OnlyHere:
    """Can't be unpickled in another process than the one that made it."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["pid"] != os.getpid():
            raise LookupError(f"made in process {state['pid']}")


def test_a_result_that_cannot_be_unpickled_here_fails_its_task_and_no_other() -> None:
    with ProcessExecutor(1) as executor:
        with pytest.raises(LookupError, match="made in process"):
            executor.submit(OnlyHere).result(timeout=30)
        assert executor.submit(pow, 2, 10).result(timeout=30) == 1024
