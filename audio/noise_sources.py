"""Where noise comes from: coloured noise out of random numbers, and recordings of background noise.

Recordings are found and checked once, decoded piece by piece, and give random crops of any length.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.fft
import soxr
from numpy.typing import NDArray

from audio.audio_file import RecordingError, open_audio
from audio.channels import read_mono
from common.errors import UserError

Floats = NDArray[np.float32]

NOISE_EXPONENTS = {"white": 0.0, "pink": -0.5, "brown": -1.0, "blue": 0.5, "violet": 1.0}
"""Amplitude of the noise colours ~ frequency ** exponent: 0, -3, -6, +3 and +6 dB per octave."""
LOWEST_NOISE_HZ = 50.0
"""Coloured noise begins here: below, pink and brown noise would spend their energy where nobody listens."""
LOOP_SAMPLES = 2**19
"""Length of a colour's loop: 33 s at 16 kHz, 2 MB."""
LOOP_SEED = 1
SILENCE_RMS = 1e-6
"""A level (-120 dB) below which there is nothing to measure noise against."""
SUFFIXES = frozenset(
    [
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".au",
        ".caf",
        ".w64",
        ".m4a",
        ".mp4",
        ".aac",
        ".webm",
        ".mka",
        ".wma",
        ".amr",
        ".3gp",
        ".spx",
    ]
)
"""What counts as audio in a folder."""
APPLE_DOUBLE = "._"
"""Begins the names of the files that macOS puts beside others on foreign disks; they hold no audio."""
PIECE_S = 30.0
"""Long recordings are decoded in pieces of this length, or up to twice as much: an hour of noise costs no more."""
CACHE_BYTES = 64 * 2**20
"""Decoded noise that a process keeps: 17 minutes at 16 kHz."""


class BackgroundNoiseError(UserError):
    """A file or folder of background noise that cannot be used."""


def rms(waveform: Floats) -> float:
    """Root of the mean square."""
    # not np.dot: BLAS adds up in another order on another number of cores
    return math.sqrt(np.square(waveform).mean(dtype=np.float64))


def color_noise(samples: int, color: str, sample_rate: int, rng: np.random.Generator) -> Floats:
    """Gaussian noise with the slope of its colour from 50 Hz to half of the sampling rate, float32 [samples], RMS 1.

    A stretch, from a random sample on, of a loop of half a minute that each process makes once per colour: drawing
    random numbers for every clip would cost ten times as much.
    """
    loop = _noise_loop(color, sample_rate)
    start = int(rng.integers(len(loop)))
    noise = loop[start : start + samples]
    if len(noise) < samples:
        noise = np.resize(np.concatenate([noise, loop[:start]]), samples)
    return noise / np.float32(rms(noise))


@lru_cache
def _noise_loop(color: str, sample_rate: int) -> Floats:
    """Noise that goes on from its end at its beginning, float32 [`LOOP_SAMPLES`].

    Made in the frequency domain: one inverse transform, the slope is exact, and the ends meet.
    """
    rng = np.random.default_rng((LOOP_SEED, list(NOISE_EXPONENTS).index(color)))
    lowest = math.ceil(LOWEST_NOISE_HZ * LOOP_SAMPLES / sample_rate)
    bins = np.arange(lowest, LOOP_SAMPLES // 2 + 1, dtype=np.float32)
    spectrum = np.zeros(LOOP_SAMPLES // 2 + 1, dtype=np.complex64)
    spectrum[lowest:] = rng.standard_normal((len(bins), 2), dtype=np.float32).view(np.complex64)[:, 0]
    spectrum[lowest:] *= bins ** np.float32(NOISE_EXPONENTS[color])
    noise = scipy.fft.irfft(spectrum, LOOP_SAMPLES)
    return np.asarray(noise / np.float32(rms(noise)))


@dataclass(frozen=True)
class _Piece:
    path: Path
    start: int
    """First frame, at the file's own sampling rate."""
    frames: int


def list_noise_files(entries: Sequence[str]) -> list[Path]:
    """The audio files among `entries`, and those in its folders at any depth, in an order that no file system changes.

    Raises:
        BackgroundNoiseError: an entry that does not exist, or a folder without audio files.
    """
    files: list[Path] = []
    for entry in map(Path, entries):
        if entry.is_dir():
            named = (p for p in entry.rglob("*") if p.suffix.lower() in SUFFIXES)
            found = sorted(p for p in named if not p.name.startswith(APPLE_DOUBLE) and p.is_file())
            if not found:
                raise BackgroundNoiseError(f"no audio file in the folder {entry}: {_remedy('name folders with noise')}")
            files += found
        elif entry.exists():
            files.append(entry)
        else:
            raise BackgroundNoiseError(f"no background noise at {entry}: {_remedy('correct the path')}")
    return files


def check_noise(entries: Sequence[str]) -> None:
    """Opens each file once, so that a bad one is told before anything that takes long.

    Raises:
        BackgroundNoiseError: as `NoiseRecordings`.
    """
    for path in list_noise_files(entries):
        _pieces(path)


class NoiseRecordings:
    """Draws noise from audio files. Decoded pieces are kept, the latest used first, up to `CACHE_BYTES`.

    Raises:
        BackgroundNoiseError: as `list_noise_files`, and for a file that cannot be decoded or is empty.
    """

    def __init__(self, entries: Sequence[str], sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._pieces = [piece for path in list_noise_files(entries) for piece in _pieces(path)]
        self._cache: OrderedDict[_Piece, Floats] = OrderedDict()
        self._cached_bytes = 0

    def crop(self, samples: int, rng: np.random.Generator) -> Floats:
        """A random stretch of noise, float32 [samples]; noise shorter than that is looped, from a random point on."""
        noise = self._decoded(self._pieces[rng.integers(len(self._pieces))])
        if len(noise) >= samples:
            start = rng.integers(len(noise) - samples + 1)
            return noise[start : start + samples]
        return np.resize(np.roll(noise, -rng.integers(len(noise))), samples)

    def file(self, number: int) -> Path:
        """The file of a piece, by the first number that `crop` draws."""
        return self._pieces[number].path

    def _decoded(self, piece: _Piece) -> Floats:
        if piece in self._cache:
            self._cache.move_to_end(piece)
            return self._cache[piece]
        noise = self._cache[piece] = _decode(piece, self._sample_rate)
        self._cached_bytes += noise.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return noise


def _pieces(path: Path) -> list[_Piece]:
    """Where to read in a file. Decodes its first second, so that a bad file is found at the start of a run."""
    try:
        with open_audio(path, in_parts=True) as file:
            frames, length = file.count(), round(PIECE_S * file.sampling_rate)
            second, _ = read_mono(file, 0, min(frames, file.sampling_rate))
    except RecordingError as error:
        raise BackgroundNoiseError(f"cannot read the background noise {path}: {error}; {_remedy('mend it')}") from error
    if not len(second):
        raise BackgroundNoiseError(f"the background noise {path} is empty; {_remedy('replace it')}")
    if not np.isfinite(second).all():
        raise BackgroundNoiseError(f"the background noise {path} holds NaN or infinity; {_remedy('replace it')}")
    starts = range(0, max(frames - length, 0) + 1, length)  # what is left at the end belongs to the last piece
    return [_Piece(path, start, length if start != starts[-1] else frames - start) for start in starts]


def _decode(piece: _Piece, sample_rate: int) -> Floats:
    try:
        with open_audio(piece.path, in_parts=True) as file:
            (noise, _), rate = read_mono(file, piece.start, piece.frames), file.sampling_rate
    except RecordingError as error:
        message = f"cannot read the background noise {piece.path}: {error}; {_remedy('mend it')}"
        raise BackgroundNoiseError(message) from error
    noise = np.nan_to_num(noise, posinf=0.0, neginf=0.0)
    noise = np.asarray(soxr.resample(noise, rate, sample_rate), dtype=np.float32)
    return noise if len(noise) else np.zeros(1, np.float32)


def _remedy(mending: str) -> str:
    return f"{mending}, or take it out of --audio_augmentation.bg_noise_file_list"
