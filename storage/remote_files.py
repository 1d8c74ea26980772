"""Files at URLs (s3://, gs://, https://, hf://, …), read by fsspec with the credentials of its drivers.

A missing file raises `FileNotFoundError`, and its recording is rejected or replaced. A store that does not answer is
asked again for `data.retry_timeout_s`, and then the run stops: which samples are in the stream must depend on the data
alone, not on when the network works.

fsspec is imported when the first URL is read, as most workers never need it.
"""

from __future__ import annotations

import errno
import logging
import posixpath
import sys
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from common.errors import UserError, one_line
from common.redaction import text_without_secrets, without_secrets

logger = logging.getLogger(__name__)

T = TypeVar("T")

DRIVERS = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "http": "aiohttp",
    "https": "aiohttp", "oci": "ocifs", "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip
"""The package that reads each protocol."""
FSSPEC_RELEASES = {"s3fs", "gcsfs"}
"""Drivers that are released together with fsspec and need its version to be the same."""
NETWORK_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("requests", "RequestException"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("paramiko", "SSHException"),
)
"""What drivers raise besides `OSError`: module and name."""
FINAL_ERRORS = {"ParamValidationError", "OfflineModeIsEnabled"}
"""Names of errors that occur again however often the store is asked."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a write that finds no room."""
RANGE_NOT_SATISFIABLE = 416
"""HTTP status."""
LONGEST_PAUSE_S = 15.0
"""Longest pause between two tries, and shortest time between two warnings, in seconds."""


class SourceError(UserError):
    """Recordings that can't be reached: a store that does not answer or gives no permission, or a missing driver."""


def is_url(name: str) -> bool:
    """Whether fsspec is needed to read this file."""
    return "://" in name


def local_path(name: str) -> str:
    """The path that a file:// URL means, written as fsspec does (no escapes); any other name as it is."""
    return name.removeprefix("file://") if name.startswith("file:///") else name


def join(root: str, name: str) -> str:
    """The file that a manifest in the folder `root` calls `name`: a path, a URL, or relative to the folder."""
    name = local_path(name)
    if is_url(name) or name.startswith("/"):
        return name
    if not is_url(root):
        return posixpath.join(root, name)
    protocol, _, path = root.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(path, name))}"


def read_file(url: str, retry_timeout_s: float) -> bytes:
    """All bytes of a file.

    Raises:
        FileNotFoundError: the store answers that there is no such file.
        SourceError: the store can't be reached.
    """
    return asking_again(url, retry_timeout_s, lambda: _cat(url))


def read_start(url: str, size: int, retry_timeout_s: float) -> bytes:
    """The first `size` bytes of a file, in one request; fewer, or more, mean that they are the whole file.

    Raises:
        FileNotFoundError: the store answers that there is no such file.
        SourceError: the store can't be reached.
    """

    def read() -> bytes:
        try:
            return _cat(url, start=0, end=size)
        except network_errors() as error:
            if getattr(error, "errno", None) == errno.EINVAL or getattr(error, "status", None) == RANGE_NOT_SATISFIABLE:
                return _cat(url)  # an empty file has no first byte
            raise

    return asking_again(url, retry_timeout_s, read)


def list_files(pattern: str, retry_timeout_s: float) -> list[str]:
    """URLs of the files that match a pattern with wildcards, sorted.

    Raises:
        SourceError: the store can't be reached.
    """

    def find() -> list[str]:
        filesystem, path = _filesystem(pattern)
        filesystem.invalidate_cache()
        return [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(path))]

    return asking_again(pattern, retry_timeout_s, find)


def is_file(url: str, retry_timeout_s: float) -> bool:
    """Whether there is a file at a URL.

    Raises:
        SourceError: the store can't be reached.
    """

    def look() -> bool:
        filesystem, path = _filesystem(url)
        filesystem.invalidate_cache()
        try:
            return bool(filesystem.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    return asking_again(url, retry_timeout_s, look)


def open_file(name: str, block_bytes: int) -> IO[bytes]:
    """A seekable file at a path or URL, read in blocks of `block_bytes`. Call it inside `asking_again`."""
    if not is_url(name):
        return open(name, "rb")
    filesystem, path = _filesystem(name)
    file: IO[bytes] = filesystem.open(path, "rb", block_size=block_bytes, cache_type="readahead")
    if not file.seekable():
        raise SourceError(f"{without_secrets(name)}: its server can't give parts of a file, which reading it needs")
    return file


def asking_again(url: str, retry_timeout_s: float, action: Callable[[], T]) -> T:
    """Runs `action`, and runs it again while the store of `url` does not answer.

    Args:
        url: for messages.
        retry_timeout_s: how long, in seconds.
        action: may be repeated.

    Raises:
        FileNotFoundError: the store answers that there is no such file.
        SourceError: the store has not answered for so long, or gives no permission.
    """
    started_at, pause_s = time.monotonic(), 1.0
    while True:
        try:
            return action()
        except (FileNotFoundError, IsADirectoryError) as error:
            if "bucket does not exist" in str(error):
                raise SourceError(f"{without_secrets(url)}: there is no such bucket") from error
            raise FileNotFoundError(without_secrets(url)) from error
        except network_errors() as error:
            if getattr(error, "errno", None) in DISK_FULL:  # a failure of this machine, not of the store
                raise
            reason = f"{type(error).__name__}: {_what_it_says(error)}"
            if _is_denied(error):
                raise SourceError(
                    f"{without_secrets(url)} gives no permission ({reason}): set the credentials that its store "
                    "expects, by environment or configuration file"
                ) from error
            waited_s = time.monotonic() - started_at
            if waited_s + pause_s > retry_timeout_s or type(error).__name__ in FINAL_ERRORS:
                raise SourceError(
                    f"{without_secrets(url)} can't be reached, tried for {waited_s:.0f} s ({reason}): start again when "
                    "its store answers; --data.retry_timeout_s says how long to try"
                ) from error
            _warn("%s can't be reached (%s): trying again for %.0f s", url, reason, retry_timeout_s - waited_s)
            time.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)


def _what_it_says(error: BaseException) -> str:
    """What a driver says, on one line, and without the secrets of URLs in it."""
    return one_line(text_without_secrets(str(error)), longest=200)


_warned_at = float("-inf")


def _warn(message: str, url: str, reason: str, left_s: float) -> None:
    """Logs a failure, at most one per LONGEST_PAUSE_S: all files of a store fail at the same time."""
    global _warned_at
    if time.monotonic() - _warned_at >= LONGEST_PAUSE_S:
        _warned_at = time.monotonic()
        logger.warning(message, without_secrets(url), reason, left_s)


def _cat(url: str, **span: int) -> bytes:
    try:
        _ = urlsplit(url).port
    except ValueError as error:  # no store can have such a file
        raise FileNotFoundError(without_secrets(url)) from error
    filesystem, path = _filesystem(url)
    try:
        content: bytes = filesystem.cat_file(path, **span)
    except ValueError as error:
        raise SourceError(f"{without_secrets(url)} can't be read: {_what_it_says(error)}") from error
    return content


def _filesystem(url: str) -> tuple[Any, str]:
    """The driver for a URL, and the URL's path in it. fsspec caches drivers, and makes new ones in a forked process."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol.rpartition("::")[2])
    except ImportError as error:
        package = DRIVERS.get(protocol, "")
        pin = f"{package}=={fsspec.__version__}" if package in FSSPEC_RELEASES else package
        remedy = f"pip install {pin}" if package else str(error)
        raise SourceError(f"{without_secrets(url)}: {protocol}:// needs a package that is missing: {remedy}") from error
    except ValueError as error:
        known = ", ".join(sorted({"file", "hf", *DRIVERS}))
        raise SourceError(
            f"{without_secrets(url)}: unknown protocol {protocol}://, expected a path or one of {known}"
        ) from error
    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem, path


def network_errors() -> tuple[type[BaseException], ...]:
    """`OSError`, and what the drivers raise that have been imported."""
    loaded = [(sys.modules[module], name) for module, name in NETWORK_ERRORS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded if hasattr(module, name)))


def _is_denied(error: BaseException) -> bool:
    """Whether the store answered, and the answer was no."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__
