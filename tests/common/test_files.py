"""Files are seen whole or not at all, locks end with their process, and failures are one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import UserError, one_line
from common.files import cannot_write, locked, written_whole

ROOT = Path(__file__).parents[2]


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file"
    with written_whole(path, durable=True) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), written_whole(path) as file:
        file.write(b"second" * (1 // 0))
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["file"]


def test_what_a_writer_that_died_has_left_is_overwritten_by_the_next_one_that_is_alone(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from common.files import written_whole\n"
        "with written_whole(Path(sys.argv[1]), alone=True) as file: file.write(b'half'); file.flush(); os._exit(9)"
    )
    path = tmp_path / "file"
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False).returncode == 9
    assert len(os.listdir(tmp_path)) == 1
    with written_whole(path, alone=True) as file:
        file.write(b"whole")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"whole"


def test_a_lock_keeps_other_processes_out_until_its_holder_dies(tmp_path):
    code = (
        "import sys; from pathlib import Path; from common.files import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        entered = threading.Event()

        def enter() -> None:
            with locked(tmp_path / "lock"):
                entered.set()

        threading.Thread(target=enter, daemon=True).start()
        assert not entered.wait(0.3)
        holder.kill()
        assert entered.wait(10)


def test_a_failure_is_one_line_with_the_file_that_the_system_names():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/other")
    shown = cannot_write(UserError, "/data/file", error, "make room")
    assert str(shown) == "cannot write /data/other: No space left on device; make room"
    assert one_line(ValueError("a\n  b\tc" + "d" * 400)) == "a b c" + "d" * 295
