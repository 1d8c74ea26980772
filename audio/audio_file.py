"""Opening audio files of any kind, without trust in what they say of themselves.

libsndfile reads most. What it does not read, or counts wrongly, is told by the file's first bytes and headers: MP3
without a header that gives its length is cut along its frames, everything else goes to ffmpeg.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import soundfile

from audio.ffmpeg_decoder import FfmpegError, FfmpegFile, format_of
from audio.file_bytes import FileBytes, Source
from audio.mp3_frames import behind_tags, index_mp3, is_complete, read_mp3_header
from audio.ogg_pages import read_ogg_facts
from audio.readers import AudioFile, FfmpegReader, LibsndfileReader, Mp3Reader, Promise
from audio.sample_headers import read_sample_facts

HIGHEST_SAMPLING_RATE_HZ = 1_000_000
"""Files that claim more are damaged. With the longest duration it bounds the memory that a recording takes."""
TOLERANCE_S = 0.1
"""How much less audio than was promised is accepted: encoders pad their blocks, manifests round."""


class RecordingError(Exception):
    """A recording that can't be used; the message is the reason, for the rejected report."""


@contextmanager
def open_audio(source: Source, *, in_parts: bool = False) -> Iterator[AudioFile]:
    """Opens a recording by what is in it; the ending of its name says nothing.

    Args:
        source: a file's path, or its bytes.
        in_parts: whether stretches of it will be read; then it need not be whole.

    Raises:
        RecordingError: the file is missing, unreadable or cut off, here or while the caller reads from it.
    """
    check_file(source)
    try:
        with ExitStack() as files:
            audio = _open(files.enter_context(FileBytes(source)), files, in_parts)
            if not 0 < audio.sampling_rate <= HIGHEST_SAMPLING_RATE_HZ:
                raise RecordingError(f"not readable as audio: a sampling rate of {audio.sampling_rate} Hz")
            if not in_parts and audio.frames is not None:
                check_length(audio.frames / audio.sampling_rate, audio.promise)
            yield audio
    except OSError as error:
        raise RecordingError(f"cannot be read: {error.strerror or error}") from error
    except FfmpegError as error:
        raise RecordingError(f"not readable as audio: {error}") from error
    except RuntimeError as error:  # LibsndfileError is one
        detail = str(error).partition(": ")[2] or str(error)
        raise RecordingError(f"not readable as audio: {detail.strip()}") from error


def check_length(found_s: float, promise: Promise | None) -> None:
    """Refuses a recording of which less is there than was promised.

    Raises:
        RecordingError: truncated.
    """
    if promise and found_s < promise.seconds - TOLERANCE_S:
        raise RecordingError(f"truncated: {found_s:.2f} s of audio where {promise.by} says {promise.seconds:.2f} s")


def _open(file: FileBytes, files: ExitStack, in_parts: bool) -> AudioFile:
    """Chooses who reads it, by its first bytes."""
    head = file.read(0, 64)
    if head.startswith(b"fLaC"):
        unknown = len(head) > 25 and not int.from_bytes(head[18:26], "big") & 2**36 - 1
        return _by_ffmpeg(file, files, "flac") if unknown else _by_libsndfile(file, files)
    if head.startswith(b"OggS"):
        return _open_ogg(file, files)
    if head.startswith((b"ID3", b"\xff")) and (reader := _open_mp3(file, files, in_parts)):
        return reader
    try:
        return _open_samples(file, files)
    except RuntimeError:
        if reader := _open_mp3(file, files, in_parts):
            return reader
        form = format_of(file.read(behind_tags(file), 256))
        if form is None:
            raise
    return _by_ffmpeg(file, files, form)


def _open_ogg(file: FileBytes, files: ExitStack) -> AudioFile:
    facts = read_ogg_facts(file)
    promise = None if facts.promised_s is None else Promise(facts.promised_s, "its last page")
    if facts.is_plain:
        return _by_libsndfile(file, files, promise)
    if not promise and facts.duration_s:
        promise = Promise(facts.duration_s, "its last page")
    return _by_ffmpeg(file, files, "ogg", promise)


def _open_mp3(file: FileBytes, files: ExitStack, in_parts: bool) -> AudioFile | None:
    """None when it is no MP3 file."""
    header = read_mp3_header(file)
    if header is None:
        return None
    if is_complete(file, header) and not in_parts:
        return _by_libsndfile(file, files)
    return Mp3Reader(file, index_mp3(file, header))


def _open_samples(file: FileBytes, files: ExitStack) -> AudioFile:
    """What is neither FLAC nor Ogg nor MP3; most of it are samples behind a header."""
    facts = read_sample_facts(file)
    if facts is None or not facts.bytes_per_s:
        return _by_libsndfile(file, files)
    if facts.unknown:
        return _by_ffmpeg(file, files, "wav")
    promised_s, there_s = facts.promised / facts.bytes_per_s, facts.there / facts.bytes_per_s
    if facts.promised and there_s > promised_s + TOLERANCE_S:
        raise RecordingError(f"the header says {promised_s:.2f} s, but {there_s:.2f} s of audio follow it")
    return _by_libsndfile(file, files, Promise(promised_s) if facts.promised else None)


def _by_libsndfile(file: FileBytes, files: ExitStack, promise: Promise | None = None) -> AudioFile:
    # By its descriptor: given a name, libsndfile takes any content of an a.vox for audio, and soundfile wants to be
    # told the sampling rate of an a.raw.
    return LibsndfileReader(files.enter_context(soundfile.SoundFile(file.handle, closefd=False)), promise)


def _by_ffmpeg(file: FileBytes, files: ExitStack, form: str, promise: Promise | None = None) -> AudioFile:
    opened = FfmpegFile(file.stream(), form)
    files.callback(opened.close)
    return FfmpegReader(opened, promise)


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
