"""The name by which a producer is known in the queue, from which others can tell whether its process still lives."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path


def process_token() -> str:
    """A new token of this process: machine:pid:start:random."""
    return f"{_machine()}:{os.getpid()}:{_start_of(os.getpid())}:{secrets.token_hex(4)}"


def has_died_here(token: str) -> bool:
    """Whether the process that `token` names ran on this machine and has ended. False when it ran on another."""
    machine, pid, start = token.rsplit(":", 3)[:3]
    if machine != _machine():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives and belongs to another user
        return False
    return _start_of(int(pid)) != start  # the number was given to another process, or it is a zombie


def _machine() -> str:
    """Host name, and the pid namespace where there is one: containers may share a host name, but not their pids."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')[5:-1]}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" for a zombie, and where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
