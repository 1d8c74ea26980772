"""From the locator of a recording's audio to its bytes. A locator is a string:

    /data/clips/a.flac                              a file
    s3://bucket/clips/a.flac                        a file at a URL that fsspec knows
    /data/train-0.parquet#audio/3/17/8f3a…          a value of a Parquet file: column, row group, row in it, identity
    /data/shard-0.tar#1536+48210                    a member of a tar file: its offset and size in bytes

A worker that reads plain files imports neither fsspec nor pyarrow.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from config import DataConfig
from storage.file_slices import parse_slice, read_slice
from storage.remote_files import is_url, read_file, read_start
from storage.row_group_cache import parse_locator, read_value

START_BYTES = 2**18
"""First request for the header of a file at a URL: most clips are smaller and come whole."""
LARGEST_WAV_BYTES = 2**26
"""A WAV header that claims a longer file is not believed: encoders that write to a pipe claim 4 GB."""
URLS_AT_ONCE = 16
"""Files at URLs that are read at the same time: most of the time goes into waiting for the store."""

_ahead = threading.local()
"""`files`: the reads that `reading_ahead` has started for this thread, by URL."""


@contextlib.contextmanager
def reading_ahead(audios: Iterable[str], data: DataConfig) -> Iterator[None]:
    """Reads those of these recordings that are at URLs, many at a time; inside the block `fetch_audio` returns them.

    Args:
        audios: locators of what will be opened; their bytes are in memory together.
        data: says how long to ask a store that does not answer.
    """
    urls = [audio for audio in dict.fromkeys(audios) if is_url(audio) and not is_inside_file(audio)]
    if not urls:
        yield
        return
    threads = ThreadPoolExecutor(min(URLS_AT_ONCE, len(urls)))
    _ahead.files = {url: threads.submit(read_file, url, data.retry_timeout_s) for url in urls}
    try:
        yield
    finally:
        _ahead.files = {}
        threads.shutdown(cancel_futures=True)


def is_inside_file(audio: str) -> bool:
    """Whether a locator names a part of a Parquet or tar file."""
    return parse_locator(audio) is not None or parse_slice(audio) is not None


def fetch_audio(audio: str | os.PathLike[str], data: DataConfig) -> str | io.BytesIO:
    """The encoded audio that a locator names: a local file's path, or the bytes of anything else.

    Raises:
        FileNotFoundError: there is no such file, and its store says so.
        SourceError: it can't be reached.
    """
    locator = os.fspath(audio)
    if place := parse_locator(locator):
        return io.BytesIO(read_value(place, data))
    if piece := parse_slice(locator):
        return read_slice(piece, data)
    if is_url(locator):
        under_way: dict[str, Future[bytes]] = getattr(_ahead, "files", {})
        if locator in under_way:
            return io.BytesIO(under_way[locator].result())
        return io.BytesIO(read_file(locator, data.retry_timeout_s))
    return locator


def fetch_header(audio: str, data: DataConfig) -> tuple[str | io.BytesIO, bool]:
    """As `fetch_audio`, for a caller that needs the header only: of a large FLAC or WAV at a URL just the first part.

    Other formats are fetched whole: their duration depends on the length or the end of the file.

    Returns:
        What soundfile reads, and whether it is the whole file.

    Raises:
        FileNotFoundError: there is no such file, and its store says so.
        SourceError: it can't be reached.
    """
    if not is_url(audio) or is_inside_file(audio):
        return fetch_audio(audio, data), True
    start = read_start(audio, START_BYTES, data.retry_timeout_s)
    if len(start) != START_BYTES:
        return io.BytesIO(start), True
    if start.startswith(b"fLaC"):
        return io.BytesIO(start), False
    claimed = int.from_bytes(start[4:8], "little") + 8
    if start.startswith(b"RIFF") and claimed <= LARGEST_WAV_BYTES:
        return PaddedStart(start, claimed), False
    return fetch_audio(audio, data), True


class PaddedStart(io.BytesIO):
    """The first part of a file that reads as the whole: zeros follow, which take no memory.

    libsndfile believes a header's duration only as far as the file is long.
    """

    def __init__(self, start: bytes, length: int) -> None:
        """
        Args:
            start: the first part.
            length: of the whole file, in bytes; not less than the first part's.
        """
        super().__init__(start)
        self._length = length
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As of any file."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """As of any file."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """As of any file; libsndfile reads a few kilobytes at a time."""
        target = memoryview(buffer).cast("B")
        size = max(0, min(len(target), self._length - self._position))
        known = self.getbuffer()[self._position : self._position + size]
        target[: len(known)] = known
        target[len(known) : size] = bytes(size - len(known))
        self._position += size
        return size

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        left = max(0, self._length - self._position)
        content = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(content)
        return bytes(content)
