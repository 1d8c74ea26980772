"""What a change of tempo leaves as it was: pitch, level, every event in its place, and clicks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from audio.time_stretch import FADE_S, TOLERANCE_S, stretch, stretched_samples
from tests.test_audioaugmentations import RATE, fundamental_hz, harmonic_tone, level_db, speech_like

FACTORS = [0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 4.0]


@pytest.mark.parametrize("factor", [*FACTORS, 1.0, 1.0001])
@pytest.mark.parametrize("samples", [1, 159, 1600, 16001])
def test_length_is_exact_for_any_recording(factor, samples):
    noise = np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)
    stretched = stretch(noise, factor, RATE)
    assert len(stretched) == stretched_samples(samples, factor)
    assert stretched.dtype == np.float32
    assert np.isfinite(stretched).all()


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.1, 1.5])
@pytest.mark.parametrize("f0_hz", [65.0, 97.0, 143.0, 211.0, 317.0])
def test_pitch_of_low_and_high_voices_stays_within_five_cents(factor, f0_hz):
    stretched = stretch(harmonic_tone(f0_hz, 3.0), factor, RATE)
    assert abs(1200 * math.log2(fundamental_hz(stretched) / f0_hz)) < 5


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.1, 1.5])
def test_a_gliding_voice_keeps_its_melody(factor):
    """From 110 to 170 Hz in 3 s: halfway through, it is halfway up."""
    t = np.arange(3 * RATE) / RATE
    glide = np.sin(2 * np.pi * (110 * t + 10 * t**2)) + 0.5 * np.sin(4 * np.pi * (110 * t + 10 * t**2))
    stretched = stretch((0.5 * glide).astype(np.float32), factor, RATE)
    middle = stretched[len(stretched) // 2 - 1600 : len(stretched) // 2 + 1600]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 16 * len(middle)))
    assert spectrum.argmax() * RATE / (16 * len(middle)) == pytest.approx(140, abs=3)


@pytest.mark.parametrize("factor", FACTORS)
def test_every_event_comes_when_the_tempo_says(factor):
    """Bursts at irregular times: none is lost, none comes early or late by more than the tolerance and a fade."""
    starts = [4000, 9500, 16000, 21700, 30300, 39000]
    speech = np.zeros(3 * RATE, np.float32)
    for number, start in enumerate(starts):
        speech[start : start + 2400] = harmonic_tone(120 + 20 * number, 0.15)
    stretched = stretch(speech, factor, RATE)
    loud = np.abs(stretched) > 0.05
    for start in starts:
        at, early = round(start / factor), round((TOLERANCE_S + FADE_S) * RATE * max(1, 1 / factor))
        assert not loud[at - early - 50 : at - early].any()
        assert loud[at - early : at + early].any()


@pytest.mark.parametrize("factor", FACTORS)
def test_beginning_and_end_are_those_of_the_recording(factor):
    tone = harmonic_tone(150)
    tone[:800], tone[-800:] = 0, 0
    tone[0], tone[-1] = 0.5, 0.25
    stretched = stretch(tone, factor, RATE)
    assert stretched[0] == 0.5
    assert stretched[-1] == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("factor", [0.5, 0.75, 0.9])
def test_slow_speech_does_not_fall_silent_before_its_end(factor):
    stretched = stretch(harmonic_tone(150), factor, RATE)
    loud = np.flatnonzero(np.abs(stretched) > 1e-3)
    assert len(stretched) - loud[-1] < 10
    assert np.diff(loud).max() < 10


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("f0_hz", [97.0, 143.0])
def test_splices_add_next_to_nothing_between_the_harmonics(factor, f0_hz):
    fade = round(FADE_S * RATE)
    stretched = stretch(harmonic_tone(f0_hz, 3.0), factor, RATE)[fade : -2 * fade]
    power = np.square(np.abs(np.fft.rfft(stretched * np.blackman(len(stretched)))))
    hz = np.fft.rfftfreq(len(stretched), 1 / RATE)
    harmonic = np.abs(hz - f0_hz * np.round(hz / f0_hz)) < 8
    assert 10 * math.log10(power[~harmonic].sum() / power[harmonic].sum()) < -38


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.1, 1.5])
def test_noise_keeps_its_level_through_the_splices(factor):
    noise = (0.2 * np.random.default_rng(0).standard_normal(5 * RATE)).astype(np.float32)
    assert level_db(stretch(noise, factor, RATE)) == pytest.approx(level_db(noise), abs=0.2)


@pytest.mark.parametrize("factor", [0.5, 0.75, 0.9, 1.1, 1.5, 2.0])
def test_splices_do_not_click(factor):
    """A click is a corner in the waveform: the tone's own second differences are the measure."""
    tone = harmonic_tone(140, 3.0)
    fade = round(FADE_S * RATE)
    stretched = stretch(tone, factor, RATE)[
        : -2 * fade
    ]  # the last splice goes to the recording's end, not to a likeness
    assert np.abs(np.diff(stretched, 2)).max() < 1.2 * np.abs(np.diff(tone, 2)).max()


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.1, 1.5])
def test_clicks_of_the_recording_are_not_smeared(factor):
    """A consonant's burst stays as short as it was: what a window of analysis would spread over 40 ms."""
    voice = 0.1 * harmonic_tone(130, 3.0)
    clicks = np.arange(3000, 3 * RATE - 3000, 4567)
    voice[clicks] += 0.8
    stretched = stretch(voice, factor, RATE)
    loud = np.flatnonzero(np.abs(stretched) > 0.3)
    assert len(loud) > len(clicks) / 2  # faster speech lacks a part of the recording
    assert not np.any(np.diff(loud) == 1)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_between_the_splices_the_recording_is_copied(factor):
    speech = speech_like()
    stretched = stretch(speech, factor, RATE)
    windows = np.lib.stride_tricks.sliding_window_view(speech, 8)
    known = {window.tobytes() for window in windows}
    copied = [stretched[n : n + 8].tobytes() in known for n in range(0, len(stretched) - 8, 8)]
    assert np.mean(copied) > 0.5


def test_level_plays_no_part_in_where_it_is_cut():
    speech = speech_like()
    np.testing.assert_array_equal(stretch(speech / 4, 1.25, RATE), stretch(speech, 1.25, RATE) / 4)
