"""Audio inside tar files: a member is a stretch of bytes of the file, `shard.tar#offset+size`."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from config import DataConfig
from storage.remote_files import asking_again, is_url, open_file

LOCATOR = re.compile(r"(?P<file>.+\.tar)#(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)


@dataclass(frozen=True)
class FileSlice:
    """A stretch of bytes of a file."""

    file: str
    """Path or URL."""
    offset: int
    size: int

    @property
    def locator(self) -> str:
        """The place as one string."""
        return f"{self.file}#{self.offset}+{self.size}"


def parse_slice(audio: str) -> FileSlice | None:
    """The stretch of bytes that a locator names, or None when it is none."""
    if "#" not in audio or not (match := LOCATOR.fullmatch(audio)):
        return None
    return FileSlice(match["file"], int(match["offset"]), int(match["size"]))


def read_slice(place: FileSlice, data: DataConfig) -> io.BytesIO:
    """The bytes of a stretch; fewer when the file has become shorter.

    Raises:
        FileNotFoundError: the file is gone.
        OSError: it can't be read.
        SourceError: its store can't be reached.
    """

    def read() -> bytes:
        with open_file(place.file, max(place.size, 1)) as file:
            file.seek(place.offset)
            return file.read(place.size)

    return io.BytesIO(asking_again(place.file, data.retry_timeout_s, read) if is_url(place.file) else read())
