"""Random access to the bytes of a recording's file, on the disk or in memory."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import IO, Generic, TypeAlias, TypeVar

T = TypeVar("T")

Source: TypeAlias = str | os.PathLike[str] | io.BytesIO
"""A recording's file: its path, or its bytes."""


class NamedBytes(io.BytesIO):
    """Bytes of a file that is known by a name: what was found out about it need not be found out again.

    Args:
        content: the file's bytes.
        identity: the same for the same content only.
    """

    def __init__(self, content: bytes, identity: Hashable) -> None:
        super().__init__(content)
        self.identity = identity


class FileBytes:
    """An open file, of which any stretch can be read.

    Args:
        source: a regular file's path (a pipe would be waited for), or a file's bytes.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(self, source: Source) -> None:
        self._bytes = source if isinstance(source, io.BytesIO) else None
        self._memory = source.getbuffer() if isinstance(source, io.BytesIO) else None
        self.descriptor = -1 if isinstance(source, io.BytesIO) else os.open(source, os.O_RDONLY)
        self.identity: Hashable = getattr(source, "identity", None)
        """Tells whether it is still the same file with the same content; None for bytes without a name."""
        if self._memory is not None:
            self.size = len(self._memory)
        else:
            status = os.fstat(self.descriptor)
            self.size = status.st_size
            self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on, fewer than `length` where the file ends.

        Raises:
            OSError: the disk can't be read.
        """
        if self._memory is not None:
            return bytes(self._memory[start : start + length])
        return os.pread(self.descriptor, max(0, min(length, self.size - start)), start)

    @property
    def handle(self) -> io.BytesIO | int:
        """What libsndfile reads from: a descriptor, or the bytes."""
        return self.descriptor if self._bytes is None else self._bytes

    def stream(self) -> IO[bytes]:
        """As an open file, which need not be closed."""
        return os.fdopen(self.descriptor, "rb", closefd=False) if self._bytes is None else self._bytes

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._memory is not None:
            self._memory.release()
        else:
            os.close(self.descriptor)


class Findings(Generic[T]):
    """What was found out about the latest files: the segments of a long one need it again and again.

    Args:
        kept: files whose findings are kept.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._found: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, file: FileBytes, find: Callable[[FileBytes], T]) -> T:
        """What `find` says of the file, now or earlier."""
        if file.identity in self._found:
            self._found.move_to_end(file.identity)
            return self._found[file.identity]
        found = find(file)
        if file.identity is not None:
            self._found[file.identity] = found
            if len(self._found) > self._kept:
                self._found.popitem(last=False)
        return found
