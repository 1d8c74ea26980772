"""Lets one trainer at a time use an output folder: two would write into the same checkpoint."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from common.errors import UserError
from common.files import cannot_write

logger = logging.getLogger(__name__)

LOCK_FILE = "trainer.lock"


class OutputFolderError(UserError):
    """The output folder cannot be written, or another trainer writes to it."""


class OutputFolder:
    """A lock on an output folder, held as long as the process lives.

    The lock is the kernel's (POSIX record lock): it ends with the process that took it, however that dies, and is not
    inherited by DataLoader workers that outlive it by a moment.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the folder; made when it is missing.

        Raises:
            OutputFolderError: it cannot be written, or another trainer has locked it.
        """
        lock = path / LOCK_FILE
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(OutputFolderError, lock, error, "choose another --model.output_dir") from error
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
                raise OutputFolderError(
                    f"another trainer ({owner}) is training into {path}: wait for it, or stop it first, or choose "
                    "another --model.output_dir and --redis.namespace"
                ) from error
            logger.warning("%s can't be locked (%s): start one trainer at a time", path, error.strerror or error)
            return
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{socket.gethostname()}, pid {os.getpid()}\n".encode(), 0)
