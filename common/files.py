"""Files that are written whole or not at all, file locks, and the error for a file that cannot be written."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from common.errors import UserError

E = TypeVar("E", bound=UserError)


@contextmanager
def written_whole(path: Path, *, durable: bool = False, alone: bool = False) -> Iterator[IO[bytes]]:
    """A binary file to write to, which replaces the one at `path` when the block ends without an exception.

    A reader finds the old content or all of the new, never a part.

    Args:
        path: the file; its folder is made when it is missing.
        durable: whether it must survive a power cut: its bytes are on the disk before it gets its name, and the name
            is on the disk before this returns.
        alone: whether a lock keeps other writers of the same file out. The unfinished file then has a fixed name, so
            that the next writer overwrites what one that died has left.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = "" if alone else f".{os.getpid()}-{secrets.token_hex(4)}"
    unfinished = path.with_name(f".{path.name}{number}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def digest_file(path: Path) -> str:
    """Identity of a file's content, 32 hexadecimal digits.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the disk is full or gone.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process of this machine at a time into the blocks that name the same lock file; the others wait.

    The kernel unlocks when the process ends, also when it is killed.

    Args:
        path: the lock file, made when it is missing; its folder must exist.

    Raises:
        OSError: the file can't be written.
    """
    import fcntl

    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cannot_write(kind: type[E], path: os.PathLike[str] | str, error: OSError, remedy: str) -> E:
    """The error for something that can't be written.

    Args:
        kind: its class.
        path: what was to be written; the file that the system names goes before it.
        error: what the system says.
        remedy: what to do: "make room, or choose another --data.cache_dir".
    """
    return kind(f"cannot write {error.filename or path}: {error.strerror or error}; {remedy}")
