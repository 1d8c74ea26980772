"""Opening and reading audio files of any kind, without trust in what they say of themselves."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import soundfile

HIGHEST_SAMPLING_RATE_HZ = 1_000_000
"""Files that claim more are damaged. With the longest duration it bounds the memory that a recording takes."""
READ_SAMPLES = 2**20
"""Samples, all channels together, that are decoded at a time."""


class RecordingError(Exception):
    """A recording that can't be used; the message is the reason, for the rejected report."""


@contextmanager
def open_audio(source: str | os.PathLike[str] | io.BytesIO) -> Iterator[soundfile.SoundFile]:
    """Opens a recording by what is in it; the ending of its name says nothing.

    Args:
        source: a file's path, or its bytes.

    Raises:
        RecordingError: the file is missing or unreadable, here or while the caller reads from it.
    """
    check_file(source)
    try:
        # By its descriptor: given a name, libsndfile takes any content of an a.vox for audio, and soundfile wants to be
        # told the sampling rate of an a.raw.
        with ExitStack() as files:
            content = source if isinstance(source, io.BytesIO) else files.enter_context(open(source, "rb")).fileno()
            audio = files.enter_context(soundfile.SoundFile(content, closefd=False))
            if not 0 < audio.samplerate <= HIGHEST_SAMPLING_RATE_HZ:
                raise RecordingError(f"not readable as audio: a sampling rate of {audio.samplerate} Hz")
            yield audio
    except OSError as error:
        raise RecordingError(f"cannot be read: {error.strerror or error}") from error
    except RuntimeError as error:  # LibsndfileError is one
        detail = str(error).partition(": ")[2] or str(error)
        raise RecordingError(f"not readable as audio: {detail.strip()}") from error


def check_file(source: str | os.PathLike[str] | io.BytesIO) -> None:
    """Refuses what can't be a recording, without opening it: a named pipe would be waited for.

    Args:
        source: a path, or a file's bytes.

    Raises:
        RecordingError: nothing is there, or no file, or nothing in it.
    """
    if isinstance(source, io.BytesIO):
        if not source.getbuffer().nbytes:
            raise RecordingError("empty file")
        return
    try:
        status = os.stat(source)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: no file can have such a name
        raise RecordingError("file not found") from error
    except OSError as error:
        raise RecordingError(f"cannot be read: {error.strerror or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise RecordingError("a folder, not an audio file")
    if not stat.S_ISREG(status.st_mode):
        raise RecordingError("a pipe or a device, not an audio file")
    if not status.st_size:
        raise RecordingError("empty file")


def read_mono(file: soundfile.SoundFile, frames: int) -> np.ndarray:
    """The mean of all channels; decoded a piece at a time, as there may be 1024 of them.

    Args:
        file: an open recording.
        frames: most samples to read of each channel.

    Returns:
        float32 `[samples]`, at most `frames`.
    """
    pieces, count = [np.zeros(0, np.float32)], 0
    while count < frames:
        channels = file.read(min(frames - count, max(1, READ_SAMPLES // file.channels)), np.float32, always_2d=True)
        if not len(channels):
            break
        pieces.append(channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1))
        count += len(channels)
    return np.concatenate(pieces)
