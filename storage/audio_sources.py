"""Where audio lies: a locator names one recording's audio as a string, and here it becomes what soundfile reads.

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

from config import DataConfig
from storage.file_slices import parse_slice, read_slice
from storage.remote_files import is_url, read_file, read_start
from storage.row_group_cache import parse_locator, read_value

HEADER_BYTES = 2**18
"""First request for the header of a file at a URL: most clips are smaller and come whole."""
LARGEST_WAV_BYTES = 2**26
"""A WAV header that claims more than this is not believed."""
URLS_AT_ONCE = 16
"""Files at URLs that are read at the same time: each is little data and much waiting."""

_ahead = threading.local()
"""`files`: what `reading_ahead` has under way in this thread, by URL."""


@contextlib.contextmanager
def reading_ahead(audios: Iterable[str], data: DataConfig) -> Iterator[None]:
    """Inside, `fetch_audio` finds those of these recordings that lie at URLs read or on their way, many at a time.

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
    """As `fetch_audio`, for who needs no more than the header: of a large FLAC or WAV at a URL only the first part.

    The headers of other formats do not tell the duration without the file's length or its end: they come whole.

    Returns:
        What soundfile reads, and whether it is the whole file.

    Raises:
        FileNotFoundError: there is no such file, and its store says so.
        SourceError: it can't be reached.
    """
    if not is_url(audio) or is_inside_file(audio):
        return fetch_audio(audio, data), True
    start = read_start(audio, HEADER_BYTES, data.retry_timeout_s)
    if len(start) != HEADER_BYTES:
        return io.BytesIO(start), True
    if start.startswith(b"fLaC"):
        return io.BytesIO(start), False
    claimed = int.from_bytes(start[4:8], "little") + 8
    if start.startswith(b"RIFF") and claimed <= LARGEST_WAV_BYTES:
        return io.BytesIO(start.ljust(claimed, b"\0")), False  # libsndfile checks the header against the length
    return fetch_audio(audio, data), True
