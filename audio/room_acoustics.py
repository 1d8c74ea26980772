"""Simulated rooms: a bank of room impulse responses for the far-field effect, made once and kept on disk.

Simulating a room costs a hundred times as much as convolving with its response. So the rooms of each distance are drawn
and simulated once, in the parent process, and every worker loads them. The rooms depend on nothing but the distance,
their number in the bank and the sampling rate: two machines make the same bank.
"""

from __future__ import annotations

import hashlib
import logging
import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from common.errors import UserError
from common.files import cannot_write, written_whole

logger = logging.getLogger(__name__)

Responses = dict[float, list[NDArray[np.float32]]]
"""Distance in metres → its rooms' impulse responses, each float32 [taps] with the direct sound at tap `DIRECT_TAP`."""

BANK_VERSION = 1
"""Raise it when a change below makes other impulse responses: old banks are then left alone, and old plans end."""
DIRECT_TAP = 40
"""Tap of the direct sound: half of the filter of 81 taps by which pyroomacoustics places a fraction of a sample."""
REVERBERATION_S = (0.2, 0.5)
"""Range of the rooms' reverberation times (RT60), in seconds: from a furnished office to a bare meeting room."""
EARLY_REFLECTIONS = 3
"""Walls that an early reflection has met at most."""
MOST_PLACES = 50
"""Places for speaker and microphone tried in a room."""
SHORTEST_BLOCK = 24_000
"""Samples of a block of the convolution, at least: what was fastest with responses of 0.2 to 0.5 s."""
WALL_MARGIN_M = 0.5
"""Speaker and microphone stay this far from walls, floor and ceiling."""


class RoomBankError(UserError):
    """The bank of impulse responses cannot be written."""


class Room:
    """A room, by its impulse response.

    The response is transformed once, for blocks of one length: what is left per clip are small transforms, which stay
    in the cache.
    """

    def __init__(self, response: NDArray[np.float32]) -> None:
        """
        Args:
            response: float32 [taps], direct sound at `DIRECT_TAP`.
        """
        self.response = response
        self._block = scipy.fft.next_fast_len(max(SHORTEST_BLOCK, 2 * len(response)), real=True)

    @cached_property
    def _spectrum(self) -> NDArray[np.complex64]:
        spectrum: NDArray[np.complex64] = scipy.fft.rfft(self.response, self._block)
        return spectrum

    def reverberate(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convolves with the response, in time with the waveform; float32 [samples] → float32 [samples].

        Source: Stockham 1966, "High-speed convolution and correlation": the overlap-save method.
        """
        before = len(self.response) - 1
        hop = self._block - before
        blocks = -(-(len(waveform) + DIRECT_TAP) // hop)
        padded = np.zeros(before + blocks * hop, np.float32)
        padded[before : before + len(waveform)] = waveform
        spectra = scipy.fft.rfft(sliding_window_view(padded, self._block)[::hop])
        spectra *= self._spectrum
        heard = scipy.fft.irfft(spectra, self._block)[:, before:].reshape(-1)
        return np.asarray(heard[DIRECT_TAP : DIRECT_TAP + len(waveform)])


def load_room_bank(cache_dir: Path, distances_m: Sequence[float], rooms: int, sample_rate: int) -> Responses:
    """Impulse responses of `rooms` rooms per distance, from a file in `cache_dir`; made, with log lines, if need be.

    Raises:
        RoomBankError: `cache_dir` cannot be made or written.
    """
    path = room_bank_path(cache_dir, distances_m, rooms, sample_rate)
    if path.exists():
        try:
            return _read(path, distances_m, rooms)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            logger.warning("cannot read the room bank %s (%s): making it again", path, error)
    bank: Responses = {}
    for distance_m in distances_m:
        logger.info("simulating %d rooms with the microphone %g m away (once; kept in %s)", rooms, distance_m, path)
        bank[distance_m] = [simulate_room(distance_m, room, sample_rate) for room in range(rooms)]
    _write(path, bank)
    return bank


def simulate_room(distance_m: float, room: int, sample_rate: int) -> NDArray[np.float32]:
    """Impulse response of a shoebox room, by image sources.

    Places where a coincidence of early reflections is louder than the direct sound are drawn anew, as far as
    the room has any others: speech must not seem to start late.

    Args:
        distance_m: from the speaker to the microphone, in a straight line.
        room: number of the room; it decides size, reverberation time and places.
        sample_rate: in Hz.

    Returns:
        float32 [taps], direct sound at `DIRECT_TAP`, cut where 60 dB of the energy have decayed.

    Source: Allen & Berkley 1979, "Image method for efficiently simulating small-room acoustics", in
    `pyroomacoustics.ShoeBox`.
    """
    import pyroomacoustics  # a second to import: only whoever makes the bank pays for it

    pyroomacoustics.constants.set("num_threads", 1)  # each number of threads rounds its sums in another way
    size_m, absorption, order = _draw_room(distance_m, np.random.default_rng((BANK_VERSION, room)))
    rng = np.random.default_rng((BANK_VERSION, room, round(distance_m * 1000)))

    def impulse_response(reflections: int) -> NDArray[np.float64]:
        walls = pyroomacoustics.Material(absorption)
        shoebox = pyroomacoustics.ShoeBox(size_m, fs=sample_rate, materials=walls, max_order=reflections)
        shoebox.add_source(speaker)
        shoebox.add_microphone(microphone)
        shoebox.compute_rir()
        start = round(distance_m / pyroomacoustics.constants.get("c") * sample_rate)  # the filter's DIRECT_TAP follows
        return np.asarray(shoebox.rir[0][0], dtype=np.float64)[start:]

    for _ in range(MOST_PLACES):
        speaker, microphone = _draw_places(distance_m, size_m, rng)
        if abs(int(np.abs(impulse_response(EARLY_REFLECTIONS)).argmax()) - DIRECT_TAP) <= 1:
            break
    return _trim(impulse_response(order))


def _draw_room(distance_m: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], float, int]:
    """Size [3] in metres, absorption of the walls and order of the reflections to follow.

    The same room for every distance, so that distance alone makes the difference; larger only where it has to be.
    """
    import pyroomacoustics

    while True:
        size_m = rng.uniform((4.5, 3.5, 2.4), (9.0, 6.0, 3.4))
        size_m[:2] = np.maximum(size_m[:2], (distance_m + 2 * WALL_MARGIN_M + 0.5, 0.7 * distance_m))
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(*REVERBERATION_S), size_m)
        except ValueError:  # no material makes a room of this size so dry
            continue
        return size_m, absorption, order


def _draw_places(
    distance_m: float, size_m: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places of speaker and microphone in the room, each [3], in metres, `distance_m` apart."""
    while True:
        speaker = rng.uniform(WALL_MARGIN_M, size_m - WALL_MARGIN_M)
        speaker[2] = rng.uniform(1.1, 1.8)  # the mouth of someone who sits or stands
        azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(-0.05, 0.05)
        level = math.cos(elevation)
        direction = np.array([level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)])
        microphone = speaker + distance_m * direction
        if np.all(microphone > WALL_MARGIN_M) and np.all(microphone < size_m - WALL_MARGIN_M):
            return speaker, microphone


def _trim(response: NDArray[np.float64]) -> NDArray[np.float32]:
    remaining = np.cumsum(np.square(response)[::-1])[::-1]
    taps = int(np.count_nonzero(remaining > 1e-6 * remaining[0]))
    return response[:taps].astype(np.float32)


def room_bank_path(cache_dir: Path, distances_m: Sequence[float], rooms: int, sample_rate: int) -> Path:
    """Where `load_room_bank` keeps this bank."""
    key = repr((BANK_VERSION, [float(distance) for distance in distances_m], rooms, sample_rate))
    return cache_dir / f"room_bank-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _array_name(distance_m: float, room: int) -> str:
    return f"{distance_m:g}m_{room}"


def _read(path: Path, distances_m: Sequence[float], rooms: int) -> Responses:
    with np.load(path) as arrays:
        return {distance: [arrays[_array_name(distance, room)] for room in range(rooms)] for distance in distances_m}


def _write(path: Path, bank: Mapping[float, Sequence[NDArray[np.float32]]]) -> None:
    arrays = {
        _array_name(distance, room): r for distance, responses in bank.items() for room, r in enumerate(responses)
    }
    try:
        with written_whole(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise cannot_write(RoomBankError, path, error, "make room, or choose another --data.cache_dir") from error
