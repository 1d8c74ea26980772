"""What libsndfile does not read, read by the ffmpeg libraries, which come with the package `av` (PyAV).

Files are not to be trusted. So the format is chosen here, by the first bytes, among those that hold audio themselves:
playlists, which would make ffmpeg open other files or addresses, are none of them. ffmpeg gets an open file, no name,
and is refused every further one. What is decoded at a time is bounded, and each packet is decoded once.

`av` is imported where the first such file is met: most workers never need its 0.1 s and 20 MB.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import numpy as np

PIN = "av==18.1.0"
_MAGIC = (
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (4, b"ftyp", "mov"), (4, b"moov", "mov"), (4, b"mdat", "mov"), (4, b"wide", "mov"), (4, b"free", "mov"),
    (4, b"skip", "mov"), (4, b"styp", "mov"),
    (0, b"#!AMR", "amr"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (8, b"WAVE", "wav"), (8, b"AVI ", "avi"), (8, b"AIFF", "aiff"), (8, b"AIFC", "aiff"),
    (0, b"FLV\x01", "flv"), (0, b".RMF", "rm"), (0, b"\x00\x00\x01\xba", "mpeg"), (0, b"caff", "caf"),
    (0, b"ADIF", "aac"), (0, b"\xff\xf1", "aac"), (0, b"\xff\xf9", "aac"), (0, b"\xff\xf0", "aac"),
    (0, b"\xff\xf8", "aac"),
    (0, b"\x0b\x77", "ac3"), (0, b"TTA1", "tta"), (0, b"wvpk", "wv"), (0, b"MAC ", "ape"), (0, b"MPCK", "mpc8"),
    (0, b"MP+", "mpc"), (0, b"ajkg", "shn"), (0, b"DSD ", "dsf"), (0, b"NIST_1A", "nistsphere"),
)  # fmt: skip
"""Place and value of the bytes that tell a format, and ffmpeg's name of it."""
_TELLS_ITS_DURATION = {"mov", "matroska", "asf", "wav", "flac", "tta", "wv", "ape"}
"""Formats whose headers have the duration; of the others ffmpeg estimates it."""
_PAST_END_SAMPLES = 4096
"""What an encoder may add to fill its last blocks, and an MP4 file leaves out of its duration."""
_PREROLL_S = 0.25
"""Decoded before a stretch: AAC's windows overlap, and its upper band needs a little of what was."""
_FRUITLESS_PACKETS = 10_000
"""Packets one after the other from which nothing can be decoded, after which a file is given up."""


class FfmpegError(Exception):
    """A file that ffmpeg can't read, or `av` is missing; the message says why."""


def format_of(head: bytes) -> str | None:
    """ffmpeg's name of the format that a file's first 64 bytes tell; None when they tell none that is read here."""
    found = next((name for at, magic, name in _MAGIC if head.startswith(magic, at)), None)
    if found is None and head[:1] == b"G" and head[188:189] in (b"", b"G"):
        return "mpegts"
    return "eac3" if found == "ac3" and len(head) > 5 and head[5] >> 3 > 10 else found


def _import_av() -> Any:
    """PyAV, silent.

    Raises:
        FfmpegError: it is not installed.
    """
    try:
        av = importlib.import_module("av")
        logging = importlib.import_module("av.logging")
    except ImportError as error:
        raise FfmpegError(f"only ffmpeg's libraries read this file: pip install {PIN}") from error
    logging.set_level(None)
    return av


def _refuse(url: str, *_: object) -> NoReturn:
    raise PermissionError(f"a recording's file must not open another: {url[:80]}")


class _Bytes:
    """An open file as ffmpeg gets it: a damaged one makes it seek to where nothing can be, which is no exception.

    Raised in the middle of ffmpeg's code, an exception would be printed with its traceback.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.tell, self.seekable = file.read, file.tell, file.seekable
        self._seek = file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves there. Returns the place; -1: there is none such."""
        try:
            return self._seek(offset, whence)
        except (ValueError, OSError, OverflowError):
            return -1


class FfmpegFile:
    """An open recording; the audio stream that ffmpeg thinks best.

    Args:
        file: its bytes; must stay open.
        form: ffmpeg's name of its format.

    Raises:
        FfmpegError: it can't be read, or has no audio.
    """

    def __init__(self, file: IO[bytes], form: str) -> None:
        self._av = _import_av()
        self._file, self._form = file, form
        self._container: Any = None
        self._open()
        self._unread: Iterator[Any] | None = self._frames()
        """All frames from the first on, as long as none but the first has been read."""
        first = next(self._unread, None)
        if first is None:
            self.close()
            raise FfmpegError("no audio in it that can be decoded")
        self._unread = itertools.chain([first], self._unread)
        self.sampling_rate: int = first.sample_rate
        """In Hz."""
        self.channels: int = first.layout.nb_channels
        self._begin_s = float(first.pts * first.time_base) if first.pts is not None else 0.0
        base = first.time_base
        self._exact = form == "mov" and first.pts is not None and (1 / base) % self.sampling_rate == 0
        self.promised_frames = self._promised_frames()
        """Samples of each channel as the header says; None when it says nothing that can be believed."""

    def _open(self) -> None:
        self.close()
        self._file.seek(0)
        options = {"protocol_whitelist": "none", "enable_drefs": "0"}
        try:
            self._container = self._av.open(
                _Bytes(self._file),
                format=self._form,
                container_options=options,
                metadata_errors="replace",
                io_open=_refuse,
            )
            self._stream = self._container.streams.best("audio")
        except (self._av.FFmpegError, ValueError, OSError) as error:
            self.close()
            raise FfmpegError(_words(error)) from error
        if self._stream is None or self._stream.codec_context is None:
            self.close()
            raise FfmpegError("no audio in it" if self._stream is None else "audio of an unknown kind")
        self._stream.codec_context.thread_count = 1

    def close(self) -> None:
        """Lets go of the file, which stays open."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _promised_frames(self) -> int | None:
        stream, container = self._stream, self._container
        if self._form not in _TELLS_ITS_DURATION:
            return None
        if stream.duration is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None and len(container.streams) == 1:  # else it may be the picture's
            duration_s = container.duration / self._av.time_base
        else:
            return None
        return round(duration_s * self.sampling_rate) if 0 < duration_s < math.inf else None

    def count(self) -> int:
        """Samples of each channel by the lengths of all packets, none of which is decoded.

        Raises:
            FfmpegError: it can't be read.
        """
        self._unread = None
        self._open()
        ticks, begin, end = 0, None, 0
        try:
            for packet in self._container.demux(self._stream):
                ticks += packet.duration or 0
                if packet.pts is not None:
                    begin = packet.pts if begin is None else min(begin, packet.pts)
                    end = max(end, packet.pts + (packet.duration or 0))
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise FfmpegError(_words(error)) from error
        return round(float((ticks or end - (begin or 0)) * self._stream.time_base) * self.sampling_rate)

    def blocks(self, start: int, frames: int) -> Iterator[np.ndarray]:
        """The samples from `start` on, at most `frames`: pieces, float32 `[samples, channels]`.

        Raises:
            FfmpegError: damaged, or its sampling rate or number of channels changes.
        """
        frames_read, at = self._unread, 0
        self._unread = None
        if self._exact and start > _PREROLL_S * self.sampling_rate:
            frames_read, at = self._seek(start), -1
        elif frames_read is None:
            self._open()
            frames_read = self._frames()
        for frame in frames_read:
            if frame.sample_rate != self.sampling_rate or frame.layout.nb_channels != self.channels:
                raise FfmpegError("its sampling rate or number of channels changes on the way")
            if at < 0:
                at = round((float(frame.pts * frame.time_base) - self._begin_s) * self.sampling_rate)
                if at > start:
                    raise FfmpegError("its index does not lead to the place asked for")
            piece = _to_floats(frame)[max(0, start - at) : max(0, start + frames - at)]
            at += frame.samples
            if len(piece):
                yield piece
            if at >= start + frames:
                return

    def _seek(self, start: int) -> Iterator[Any]:
        """The frames from somewhat before `start` on."""
        target_s = start / self.sampling_rate - _PREROLL_S + self._begin_s
        try:
            self._container.seek(int(target_s / self._stream.time_base), stream=self._stream, backward=True)
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise FfmpegError(_words(error)) from error
        return self._frames()

    def _frames(self) -> Iterator[Any]:
        """All decoded frames. What can't be decoded may lie at the begin or the end of the file, not within."""
        damage, any_before, fruitless = "", False, 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.FFmpegError, ValueError, OSError) as error:
                raise FfmpegError(_words(error)) from error
            if packet is None:
                return
            try:
                frames = packet.decode()
            except (self._av.FFmpegError, ValueError, OSError) as error:
                damage, frames = (_words(error) if any_before else ""), []
            fruitless = 0 if frames else fruitless + 1
            if fruitless > _FRUITLESS_PACKETS:
                raise FfmpegError("nothing in it can be decoded")
            for frame in frames:
                if damage and packet.size:  # what a decoder gives up at the end tells nothing
                    raise FfmpegError(f"damaged within: {damage}")
                any_before = True
                yield frame

    def audio_among(self, frames: int) -> int:
        """How many of all decoded samples are audio: an MP4 file says where its encoder's filling begins."""
        if self._form == "mov" and self.promised_frames and 0 < frames - self.promised_frames <= _PAST_END_SAMPLES:
            return self.promised_frames
        return frames


def _to_floats(frame: Any) -> np.ndarray:
    """float32 `[samples, channels]`, full scale ±1, of a decoded frame in any sample format."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / np.float32(2 ** (8 * values.dtype.itemsize - 1))
    return values.astype(np.float32, copy=False).T


def _words(error: BaseException) -> str:
    """What ffmpeg says, without its number."""
    text = str(getattr(error, "strerror", None) or error)
    return text.partition(": '")[0].strip() or type(error).__name__
