"""Change of tempo at constant pitch: speech is cut where it repeats itself.

Between splices the recording is copied as it is. At a splice the reading point jumps by a whole number of pitch
periods, so that both sides of the cross-fade say the same, and jumps keep it near where the tempo wants it to be.
That suits speech, which is one voice: nothing is smeared over a window of analysis, and it costs a fraction of a
spectral method.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FADE_S = 0.010
"""Length of a cross-fade, in seconds: also of what is compared to find a jump. A period of 100 Hz."""
TOLERANCE_S = 0.009
"""How far the reading point may stray from the tempo's, in seconds: within twice of it lies a period of 56 Hz or more.
"""
SHORTEST_JUMP_S = 0.0025
"""Shorter jumps, in seconds, always look alike, and would change the pitch instead of the tempo: a period of 400 Hz."""
LONG_JUMPS = 1.1
"""The longest jump is preferred to one of no length when it is alike within this factor: fewer splices do."""
SEARCH_HZ = 8000
"""Rate at which the sides of a splice are compared, at least; between its samples the best jump is interpolated."""


def stretched_samples(samples: int, factor: float) -> int:
    """Samples after a change of speed: samples / factor, a half rounded up."""
    return math.floor(samples / factor + 0.5)


def stretch(waveform: Floats, factor: float, sample_rate: int) -> Floats:
    """Changes the tempo: `stretched_samples` of the same voice. A cross-fade may overshoot its two sides.

    Args:
        waveform: float32 [samples].
        factor: 1.25 is a quarter faster.
        sample_rate: in Hz.

    Source: Morita & Itakura 1986, "Time-scale modification algorithm for speech by use of pointer interval control
    overlap and add (PICOLA)": copies, with jumps by the pitch period; Verhelst & Roelands 1993, "An overlap-add
    technique based on waveform similarity (WSOLA)": a jump goes where its two sides are most alike; Fink, Holters &
    Zölzer 2016, "Signal-matched power-complementary cross-fading": how alike they are decides how loud the fade is.
    """
    samples, fade = stretched_samples(len(waveform), factor), round(FADE_S * sample_rate)
    starts, offsets, likenesses = _splices(waveform, samples, factor, sample_rate)
    source = np.zeros(max(len(waveform), samples) + 4 * fade, np.float32)
    source[: len(waveform)] = waveform
    stretched = np.empty(samples + fade, np.float32)
    edges = [0, *starts, samples]
    for start, stop, offset in zip(edges[:-1], edges[1:], [0, *offsets], strict=True):
        stretched[start:stop] = source[start + offset : stop + offset]
    if starts:
        rise = (0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)).astype(np.float32)
        fades = np.array(starts)[:, None] + np.arange(fade)
        old, new = (source[fades + np.array(those)[:, None]] for those in ([0, *offsets[:-1]], offsets))
        new -= old
        new *= rise
        new += old
        unlike = 1 - np.array(likenesses, np.float32)[:, None]
        new /= np.sqrt(1 - 2 * unlike * (rise * (1 - rise)))
        stretched[fades] = new
    return stretched[:samples]


def _splices(
    waveform: Floats, samples: int, factor: float, sample_rate: int
) -> tuple[list[int], list[int], list[float]]:
    """Where to jump, and how far, so that result[n] is never farther than the tolerance from waveform[n * factor].

    Returns:
        Where the cross-fade of each splice begins, in samples of the result; the offset from then on, as result[n] is
        waveform[n + offset]; how much its two sides are alike, 0 to 1.
    """
    starts: list[int] = []
    offsets: list[int] = []
    likenesses: list[float] = []
    if factor == 1:
        return starts, offsets, likenesses
    fade, tolerance, shortest = (round(seconds * sample_rate) for seconds in (FADE_S, TOLERANCE_S, SHORTEST_JUMP_S))
    drift, direction = abs(factor - 1), 1 if factor > 1 else -1
    finder = _JumpFinder(waveform, direction, fade, 4 * tolerance, sample_rate)
    start, offset = -fade, 0
    while True:
        ahead = direction * offset
        start = max(start + fade, math.ceil((ahead + tolerance) / drift))
        if start + 3 * fade > samples:
            break
        farthest = int(drift * start) + tolerance - ahead
        nearest = max(shortest, farthest - 2 * tolerance)
        if direction < 0:
            farthest = min(farthest, start + offset)
        jump, likeness = finder.best_jump(start + offset, nearest, farthest)
        offset += jump
        starts.append(start)
        offsets.append(offset)
        likenesses.append(likeness)
    last = len(waveform) - samples
    if offset != last and min(samples, len(waveform)) > 2 * fade:  # so that the last sample is the recording's last
        start = samples - fade - max(0, offset - last)  # and before the recording ends
        starts.append(start)
        offsets.append(last)
        likenesses.append(0.0)
    return starts, offsets, likenesses


class _JumpFinder:
    """Finds the jump whose two sides are most alike.

    In whole numbers at a low rate: sums of their products are exact in float64, so every machine finds the same jump.
    """

    def __init__(self, waveform: Floats, direction: int, fade: int, longest: int, sample_rate: int) -> None:
        self._step = step = max(1, sample_rate // SEARCH_HZ)
        self._length, self._direction = fade // step, direction
        whole = len(waveform) // step
        sums = waveform[: whole * step : step].astype(np.float64)
        for part in range(1, step):
            sums += waveform[part : whole * step : step]
        peak = max(sums.max(initial=0), -sums.min(initial=0))
        self._samples = np.zeros(whole + 4 * self._length)
        np.rint(sums * (32767 / peak if peak > 0 else 0.0), out=self._samples[:whole])
        energies = np.cumsum(np.square(self._samples))
        energies[self._length :] -= energies[: -self._length].copy()
        self._weights = 1 / np.sqrt(energies[self._length - 1 :] + 1)
        self._preference = np.linspace(1, LONG_JUMPS, longest // step + 1)[::direction]

    def best_jump(self, at: int, nearest: int, farthest: int) -> tuple[int, float]:
        """The jump from `at` whose sides are most alike; and how much they are, 0 to 1.

        Args:
            at: in samples, like the others.
            nearest: length of the shortest jump to consider.
            farthest: length of the longest.
        """
        step, length = self._step, self._length
        here, ends = at // step, (nearest // step * self._direction, farthest // step * self._direction)
        first, last = max(here + min(ends), 0), min(here + max(ends), len(self._weights) - 1)
        likeness = np.correlate(self._samples[first : last + length], self._samples[here : here + length])
        likeness *= self._weights[first : last + 1]
        count = len(likeness)
        scores = likeness * (self._preference[:count] if self._direction > 0 else self._preference[-count:])
        best = int(scores.argmax())
        jump = float(first + best - here)
        if 0 < best < count - 1:
            before, peak, after = scores[best - 1 : best + 2].tolist()
            if before + after < 2 * peak:  # the top of a parabola through three points
                jump += 0.5 * (before - after) / (before - 2 * peak + after)
        return round(jump * step), min(1.0, max(0.0, float(likeness[best] * self._weights[here])))
