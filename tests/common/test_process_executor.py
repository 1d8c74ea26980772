"""Workers die at any moment, and their tasks are done all the same."""

from __future__ import annotations

import threading

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
