"""What each augmentation does to the signal, which one is chosen when, and where rooms and noise come from."""

from __future__ import annotations

import hashlib
import logging
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audio import noise_sources
from audio.augmentation_registry import AUGMENTATIONS
from audio.effects import (
    add_color_noise,
    add_far_field,
    change_speed,
    down_upsample,
    enhance_speech,
    mix_background,
    shift_pitch,
)
from audio.noise_sources import NoiseRecordings, color_noise
from audio.room_acoustics import DIRECT_TAP, Room, RoomBankError, load_room_bank, simulate_room
from audioaugmentations import (
    AudioAugmentations,
    Choice,
    Step,
    enabled_augmentations,
    fingerprint,
    prepare,
)
from common.errors import UserError
from config import AudioAugmentationConfig
from features.masking import mask_log_mel

RATE = 16000
WINDOW = 30 * RATE
DISTANCES_M = [1.0, 3.0, 5.0]
ROOMS = 4


def harmonic_tone(f0_hz: float, duration_s: float = 2.0) -> np.ndarray:
    t = np.arange(round(duration_s * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * f0_hz * k * t) / k for k in range(1, 12))
    return (0.3 * tone / np.abs(tone).max()).astype(np.float32)


def speech_like(duration_s: float = 3.0) -> np.ndarray:
    """Harmonics of 130 Hz in syllables of 150 ms with pauses of 100 ms, peak 1."""
    tone = harmonic_tone(130, duration_s)
    syllables = np.clip(20 * np.sin(2 * np.pi * 4 * np.arange(len(tone)) / RATE) + 6, 0, 1)
    return (tone * syllables / np.abs(tone * syllables).max()).astype(np.float32)


def fundamental_hz(waveform: np.ndarray) -> float:
    """The strongest partial, which in `harmonic_tone` is the fundamental."""
    middle = waveform[len(waveform) // 5 : -len(waveform) // 5]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 16 * len(middle)))
    return float(spectrum.argmax() * RATE / (16 * len(middle)))


def level_db(waveform: np.ndarray) -> float:
    return 10 * math.log10(np.mean(np.square(waveform, dtype=np.float64)))


def snr_db(speech: np.ndarray, mix: np.ndarray) -> float:
    """Finds the speech in the mix, which may have been scaled, by projection; the rest is noise."""
    speech, mix = speech.astype(np.float64), mix.astype(np.float64)
    found = speech * (speech @ mix) / (speech @ speech)
    return level_db(found) - level_db(mix - found)


def slope_db_per_octave(noise: np.ndarray, low_hz: float = 100, high_hz: float = 6400) -> float:
    """Slope of the power density over bands of an octave."""
    power, hz = np.square(np.abs(np.fft.rfft(noise))), np.fft.rfftfreq(len(noise), 1 / RATE)
    edges = low_hz * 2.0 ** np.arange(int(math.log2(high_hz / low_hz)) + 1)
    densities = [10 * math.log10(power[(hz >= a) & (hz < 2 * a)].mean()) for a in edges[:-1]]
    return float(np.polyfit(range(len(densities)), densities, 1)[0])


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def rooms(cache_dir):
    return load_room_bank(cache_dir, DISTANCES_M, ROOMS, RATE)


@pytest.fixture(scope="module")
def noise_dir(tmp_path_factory) -> Path:
    """Two recordings of noise: half a second at 44.1 kHz in stereo, and 3 s at 16 kHz."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(1)
    (folder / "street").mkdir()
    soundfile.write(folder / "street" / "horn.flac", 0.1 * rng.standard_normal((22050, 2)), 44100)
    soundfile.write(folder / "fan.wav", 0.1 * rng.standard_normal(3 * RATE), RATE)
    (folder / "README.txt").write_text("not audio")
    return folder


def make(cache_dir: Path, noise_dir: Path | None = None, max_samples: int = WINDOW, **options) -> AudioAugmentations:
    files = [str(noise_dir)] if noise_dir else []
    config = AudioAugmentationConfig(far_field_rooms=ROOMS, bg_noise_file_list=files, **options)
    return AudioAugmentations(config, cache_dir, max_samples)


def only(*names: str) -> dict[str, float]:
    """Probabilities that leave these augmentations on."""
    return {row.prob_field: float(name in names) for name, row in AUGMENTATIONS.items()}


class TestSpeed:
    @pytest.mark.parametrize("factor", [0.25, 0.75, 0.8, 0.9, 1.1, 1.25, 1.5, 4.0])
    def test_length_changes_by_the_factor_and_pitch_does_not(self, factor):
        tone = harmonic_tone(150)
        changed = change_speed(tone, factor, RATE)
        assert len(changed) == round(len(tone) / factor)
        assert abs(1200 * math.log2(fundamental_hz(changed) / 150)) < 10

    @pytest.mark.parametrize("factor", [0.75, 1.5])
    def test_nothing_is_cut_off_at_the_end(self, factor):
        speech = np.zeros(2 * RATE, np.float32)
        speech[-8000:-800] = harmonic_tone(150)[:7200]  # a last word, 50 ms before the end
        changed = change_speed(speech, factor, RATE)
        word = np.flatnonzero(np.abs(changed) > 0.1 * np.abs(changed).max())
        assert (word[-1] - word[0]) / (7200 / factor) == pytest.approx(1, abs=0.1)
        assert word[0] == pytest.approx((2 * RATE - 8000) / factor, abs=0.04 * RATE)

    def test_level_stays_near_that_of_audiomentations(self):
        from audiomentations import TimeStretch

        speech = 0.3 * speech_like()
        reference = TimeStretch(0.8, 0.8, leave_length_unchanged=False, p=1.0)(speech, RATE)
        changed = change_speed(speech, 0.8, RATE)
        assert len(changed) == len(reference)
        assert level_db(changed) == pytest.approx(level_db(reference), abs=1.5)


@pytest.mark.parametrize("semitones", [-12.0, -3.0, 0.5, 3.0, 12.0])
@pytest.mark.parametrize("f0_hz", [90.0, 210.0])
def test_pitch_shifts_by_the_semitones_and_length_stays(semitones, f0_hz):
    tone = harmonic_tone(f0_hz)
    shifted = shift_pitch(tone, semitones, RATE)
    assert len(shifted) == len(tone)
    assert 12 * math.log2(fundamental_hz(shifted) / f0_hz) == pytest.approx(semitones, abs=0.1)


@pytest.mark.parametrize("semitones", [-3.0, 3.0])
def test_pitch_shift_keeps_the_tempo(semitones):
    speech = np.zeros(2 * RATE, np.float32)
    speech[16000:24000] = harmonic_tone(150)[:8000]
    shifted = shift_pitch(speech, semitones, RATE)
    word = np.flatnonzero(np.abs(shifted) > 0.1 * np.abs(shifted).max())
    assert word[0] == pytest.approx(16000, abs=0.03 * RATE)
    assert word[-1] == pytest.approx(24000, abs=0.03 * RATE)


class TestFarField:
    @pytest.mark.parametrize("distance_m", DISTANCES_M)
    def test_speech_does_not_shift_and_keeps_its_level(self, rooms, distance_m):
        speech = 0.2 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
        speech[: RATE // 4] = 0
        for response in rooms[distance_m]:
            far = add_far_field(speech, Room(response))
            assert len(far) == len(speech)
            correlation = np.fft.irfft(np.fft.rfft(far, 4 * RATE) * np.conj(np.fft.rfft(speech, 4 * RATE)))
            lag = (np.abs(correlation).argmax() + 2 * RATE) % (4 * RATE) - 2 * RATE
            assert abs(lag) <= RATE / 1000
            assert level_db(far) == pytest.approx(level_db(speech), abs=1)

    def test_reverberation_follows_the_speech(self, rooms):
        burst = np.zeros(RATE, np.float32)
        burst[:4000] = harmonic_tone(200)[:4000]
        far = add_far_field(burst, Room(rooms[3.0][0]))
        assert level_db(far[4200:5000]) > level_db(far[:4000]) - 30  # there was digital silence
        assert level_db(far[4200:5000]) > level_db(far[9000:9800]) + 5  # and it decays

    def test_direct_sound_is_weaker_against_the_reverberation_the_farther_away(self, rooms):
        def direct_to_reverberant_db(response):
            split = 2 * DIRECT_TAP
            return 10 * math.log10(np.square(response[:split]).sum() / np.square(response[split:]).sum())

        near, middle, far = (np.mean([direct_to_reverberant_db(r) for r in rooms[d]]) for d in DISTANCES_M)
        assert near > middle + 2 > far + 2

    def test_bank_is_read_again_from_its_file(self, cache_dir, rooms, caplog):
        with caplog.at_level(logging.INFO):
            again = load_room_bank(cache_dir, DISTANCES_M, ROOMS, RATE)
        assert not caplog.records
        assert all(np.array_equal(a, b) for d in DISTANCES_M for a, b in zip(again[d], rooms[d], strict=True))

    def test_damaged_bank_is_made_again(self, tmp_path, caplog):
        load_room_bank(tmp_path, [1.0], 1, RATE)
        (file,) = tmp_path.iterdir()
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        load_room_bank(tmp_path, [1.0], 1, RATE)
        assert "making it again" in caplog.text
        assert file.read_bytes() == whole

    def test_other_parameters_have_another_bank(self, tmp_path):
        load_room_bank(tmp_path, [0.5], 1, RATE)
        load_room_bank(tmp_path, [0.6], 1, RATE)
        assert len(list(tmp_path.iterdir())) == 2

    def test_cache_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(RoomBankError, match=r"file.*--data\.cache_dir"):
            load_room_bank(tmp_path / "file", [1.0], 1, RATE)

    @pytest.mark.parametrize("samples", [100, 23_960, 24_000, 100_003])
    def test_rooms_convolve_in_blocks_as_in_one_piece(self, rooms, samples):
        waveform = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
        response = rooms[3.0][0]
        expected = np.convolve(waveform.astype(np.float64), response)[DIRECT_TAP:][:samples]
        np.testing.assert_allclose(Room(response).reverberate(waveform), expected, atol=2e-5)


class TestNoise:
    @pytest.mark.parametrize("focus", [0.2, 0.8, 0.9, 0.95])
    def test_background_is_mixed_at_the_ratio_of_the_shares(self, focus):
        speech = speech_like()
        noise = 0.01 * np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
        mix = mix_background(speech, noise, focus)
        assert snr_db(speech, mix) == pytest.approx(20 * math.log10(focus / (1 - focus)), abs=0.5)
        assert np.abs(mix).max() <= 1

    def test_silent_noise_and_silent_speech_are_left_alone(self):
        speech, silence = speech_like(0.5), np.zeros(RATE // 2, np.float32)
        assert np.array_equal(mix_background(speech, silence, 0.8), speech)
        assert np.array_equal(mix_background(silence, speech, 0.8), silence)

    @pytest.mark.parametrize("color", ["white", "pink", "brown", "blue", "violet"])
    def test_color_noise_is_mixed_at_its_gain(self, color):
        speech = speech_like()
        mix = add_color_noise(speech, color, 0.1, RATE, np.random.default_rng(0))
        assert snr_db(speech, mix) == pytest.approx(20, abs=0.5)

    @pytest.mark.parametrize(
        ("color", "slope"), [("white", 0), ("pink", -3.01), ("brown", -6.02), ("blue", 3.01), ("violet", 6.02)]
    )
    def test_color_noise_has_its_slope(self, color, slope):
        noise = color_noise(5 * RATE, color, RATE, np.random.default_rng(0))
        assert slope_db_per_octave(noise) == pytest.approx(slope, abs=1)
        assert level_db(noise) == pytest.approx(0, abs=0.01)

    def test_color_noise_is_drawn_anew_and_has_no_seam(self):
        first, again, other = (color_noise(RATE, "pink", RATE, np.random.default_rng(seed)) for seed in (0, 0, 1))
        assert np.array_equal(first, again)
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.1
        for seed in range(5):
            looped = color_noise(noise_sources.LOOP_SAMPLES + RATE, "brown", RATE, np.random.default_rng(seed))
            assert np.abs(np.diff(looped)).max() < 6 * np.diff(looped).std()
            np.testing.assert_array_equal(looped[:RATE], looped[-RATE:])

    def test_crops_are_random_stretches_of_the_recordings(self, noise_dir):
        recordings = NoiseRecordings([str(noise_dir / "fan.wav")], RATE)
        fan = soundfile.read(noise_dir / "fan.wav", dtype="float32")[0]
        rng = np.random.default_rng(0)
        starts = set()
        for _ in range(5):
            crop = recordings.crop(RATE, rng)
            (start,) = (i for i in np.flatnonzero(fan == crop[0]) if np.array_equal(fan[i : i + RATE], crop))
            starts.add(start)
        assert len(starts) == 5

    def test_short_noise_is_looped(self, noise_dir):
        crop = NoiseRecordings([str(noise_dir / "street" / "horn.flac")], RATE).crop(RATE, np.random.default_rng(0))
        assert len(crop) == RATE
        np.testing.assert_array_equal(crop[: RATE // 2], crop[RATE // 2 :])

    def test_long_noise_is_used_to_its_end_in_pieces(self, tmp_path, monkeypatch):
        monkeypatch.setattr(noise_sources, "PIECE_S", 1.0)
        ramp = np.linspace(0, 0.9, 7 * RATE // 2, dtype=np.float32)
        soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="FLOAT")
        recordings, rng = NoiseRecordings([str(tmp_path)], RATE), np.random.default_rng(0)
        crops = [recordings.crop(1600, rng) for _ in range(60)]
        assert min(c[0] for c in crops) < 0.1
        assert max(c[-1] for c in crops) > 0.8

    def test_decoded_noise_stays_within_its_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(noise_sources, "CACHE_BYTES", 3 * 4 * RATE)
        for i in range(6):
            soundfile.write(tmp_path / f"{i}.wav", np.full(RATE, i / 10), RATE)
        recordings, rng = NoiseRecordings([str(tmp_path)], RATE), np.random.default_rng(0)
        heard = {round(10 * float(recordings.crop(100, rng)[0])) for _ in range(60)}
        assert heard == set(range(6))
        assert sum(noise.nbytes for noise in recordings._cache.values()) <= 3 * 4 * RATE

    @pytest.mark.parametrize("content", [b"", b"this is not audio", b"RIFF$\0\0\0WAVEfmt "])
    def test_unreadable_noise_is_named_at_the_start(self, tmp_path, content):
        (tmp_path / "broken.wav").write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.wav.*bg_noise_file_list"):
            make(tmp_path, tmp_path, **only("background_noise"))

    def test_noise_that_is_not_there_is_named_at_the_start(self, tmp_path):
        with pytest.raises(UserError, match="nowhere"):
            make(tmp_path, tmp_path / "nowhere", **only("background_noise"))
        with pytest.raises(UserError, match="no audio file in the folder"):
            make(tmp_path, tmp_path, **only("background_noise"))


@pytest.mark.parametrize("low_rate", [1000, 2000, 4000, 8000, 11025])
def test_nothing_is_left_above_half_of_the_lower_rate(low_rate):
    noise = (0.1 * np.random.default_rng(0).standard_normal(3 * RATE + 7)).astype(np.float32)
    resampled = down_upsample(noise, low_rate, RATE)
    assert len(resampled) == len(noise)
    power, hz = np.square(np.abs(np.fft.rfft(resampled))), np.fft.rfftfreq(len(noise), 1 / RATE)
    kept, lost = power[hz < 0.4 * low_rate].mean(), power[hz > 0.51 * low_rate].mean()
    assert 10 * math.log10(lost / kept) <= -40
    assert 10 * math.log10(kept / np.square(np.abs(np.fft.rfft(noise)))[hz < 0.4 * low_rate].mean()) > -1


class TestEnhancement:
    @pytest.mark.parametrize("noise_db", [-10, -20])
    def test_noise_floor_falls_while_speech_stays(self, noise_db):
        speech = 0.5 * speech_like()
        pauses = speech == 0
        noise = np.random.default_rng(0).standard_normal(len(speech)) * 10 ** ((level_db(speech) + noise_db) / 20)
        noisy = (speech + noise).astype(np.float32)
        enhanced = enhance_speech(noisy)
        assert len(enhanced) == len(noisy)
        middle = np.convolve(pauses, np.ones(1025), "same") > 1024.5  # pauses without what their neighbours spill in
        assert level_db(enhanced[middle]) < level_db(noisy[middle]) - 10
        assert level_db(enhanced[~pauses]) == pytest.approx(level_db(speech[~pauses]), abs=1)
        assert snr_db(speech, enhanced) > snr_db(speech, noisy) + 1

    def test_clean_speech_stays_as_it_is(self):
        speech = 0.5 * speech_like()
        assert snr_db(speech, enhance_speech(speech)) > 20

    def test_speech_without_a_pause_is_not_taken_for_noise(self):
        vowel = harmonic_tone(130)
        assert level_db(enhance_speech(vowel)) > level_db(vowel) - 7


class TestMasking:
    def test_masks_are_blocks_of_the_mean_within_their_widths(self):
        log_mel = np.random.default_rng(0).standard_normal((80, 330)).astype(np.float32)
        mean = np.float32(log_mel.mean(dtype=np.float64))
        widths = Counter()
        for seed in range(200):
            masked = mask_log_mel(log_mel, 1, 5, 1, 20, np.random.default_rng(seed))
            cells = masked == mean
            frames, bins = np.flatnonzero(cells.all(axis=0)), np.flatnonzero(cells.all(axis=1))
            assert len(frames) == np.ptp(frames) + 1 <= 5
            assert len(bins) == np.ptp(bins) + 1 <= 20
            outside = np.ones_like(cells)
            outside[:, frames] = outside[bins] = False
            assert np.array_equal(masked[outside], log_mel[outside])
            assert cells[~outside].all()
            widths.update(frames=len(frames), bins=len(bins))
        assert widths["frames"] / 200 == pytest.approx(3, abs=0.4)
        assert widths["bins"] / 200 == pytest.approx(10.5, abs=1.2)

    @pytest.mark.parametrize("frames", [1, 4, 10, 40])
    def test_short_clips_lose_at_most_a_fifth_of_their_frames(self, frames):
        log_mel = np.random.default_rng(0).standard_normal((80, frames)).astype(np.float32)
        for seed in range(20):
            masked = mask_log_mel(log_mel, 4, 100, 0, 0, np.random.default_rng(seed))
            assert (masked != log_mel).any(axis=0).sum() <= 0.2 * frames

    def test_masks_of_the_whole_spectrum_leave_half_of_the_bins(self):
        log_mel = np.random.default_rng(0).standard_normal((80, 100)).astype(np.float32)
        for seed in range(20):
            masked = mask_log_mel(log_mel, 0, 0, 3, 80, np.random.default_rng(seed))
            assert (masked != log_mel).any(axis=1).sum() <= 40

    def test_masking_is_for_the_log_mel_and_leaves_the_waveform(self, tmp_path):
        augmentations, rng = make(tmp_path, **only("masking")), np.random.default_rng(0)
        speech, log_mel = speech_like(1.0), np.random.default_rng(0).standard_normal((80, 100)).astype(np.float32)
        choice = augmentations.choose(0, len(speech), rng)
        assert choice.label == "masking"
        assert np.array_equal(augmentations.apply_waveform(speech, choice, rng), speech)
        assert not np.array_equal(augmentations.apply_log_mel(log_mel, choice, rng), log_mel)
        assert augmentations.apply_log_mel(log_mel, Choice(), rng) is log_mel


class TestChoice:
    def test_round_robin_meets_every_augmentation_with_every_option(self, cache_dir, noise_dir):
        augmentations, rng = make(cache_dir, noise_dir, noise_gain_min_max=[0.1, 0.2]), np.random.default_rng(0)
        assert augmentations.enabled == tuple(AUGMENTATIONS)
        turns = len(AUGMENTATIONS) * 10  # the colours and their gains are the most options
        met = {augmentations.choose(turn, RATE, rng).label for turn in range(turns)}
        expected = {f"speed={f:g}" for f in augmentations.config.speed_factors}
        expected |= {"pitch_shift=3", "pitch_shift=-3", "speech_enhancement", "masking"}
        expected |= {f"far_field={d:g}" for d in DISTANCES_M}
        expected |= {f"background_noise={f}" for f in (0.8, 0.9, 0.95)}
        expected |= {f"color_noise={c}@{g}" for c in ("white", "pink", "brown", "blue", "violet") for g in (0.1, 0.2)}
        expected |= {f"down_upsampling={r}" for r in (2000, 4000, 8000)}
        assert met == expected

    def test_round_robin_takes_one_augmentation_per_turn_each_as_often(self, cache_dir, noise_dir):
        augmentations, rng = make(cache_dir, noise_dir), np.random.default_rng(0)
        choices = [augmentations.choose(turn, RATE, rng) for turn in range(160)]
        assert Counter(step.name for choice in choices for step in choice.steps) == dict.fromkeys(AUGMENTATIONS, 20)
        assert choices[0].steps[0].name != choices[1].steps[0].name

    def test_probability_zero_switches_off(self, tmp_path):
        augmentations = make(tmp_path, **only("speed", "masking"))
        assert augmentations.enabled == ("speed", "masking")
        assert make(tmp_path, **only()).choose(5, RATE, np.random.default_rng(0)).label == "none"

    def test_multiple_augmentations_fire_by_their_probabilities(self, cache_dir, noise_dir):
        augmentations, rng = make(cache_dir, noise_dir, multiple_aug=True), np.random.default_rng(0)
        choices = [augmentations.choose(0, RATE, rng) for _ in range(4000)]
        fired = Counter(step.name for choice in choices for step in choice.steps)
        for name in AUGMENTATIONS:
            assert fired[name] / 4000 == pytest.approx(0.5 if name == "speed" else 0.25, abs=0.03)
        factors = Counter(step.option[0] for choice in choices for step in choice.steps if step.name == "speed")
        assert set(factors) == set(augmentations.config.speed_factors)
        assert min(factors.values()) > 250
        order = list(AUGMENTATIONS)
        assert all([*map(order.index, names)] == sorted(map(order.index, names)) for names in map(names_of, choices))
        assert sum(not choice.steps for choice in choices) / 4000 == pytest.approx(0.5 * 0.75**7, abs=0.02)
        assert {c.label for c in choices if not c.steps} == {"none"}
        assert any("+color_noise=pink@0.1" in c.label for c in choices)

    def test_a_speed_that_exceeds_the_window_gives_way_to_the_next_that_fits(self, tmp_path):
        augmentations, rng = make(tmp_path, max_samples=4 * RATE, **only("speed")), np.random.default_rng(0)
        labels = [augmentations.choose(turn, round(3.5 * RATE), rng).label for turn in range(6)]
        assert labels == ["speed=0.9", "speed=0.9", "speed=0.9", "speed=1.1", "speed=1.25", "speed=1.5"]
        slow = make(tmp_path, max_samples=4 * RATE, speed_factors=[0.75, 0.8], **only("speed"))
        choice = slow.choose(0, 4 * RATE, rng)
        assert choice.label == "speed=1"
        assert len(slow.apply_waveform(speech_like(4.0), choice, rng)) == 4 * RATE

    def test_whole_numbers_from_the_command_line_are_options_too(self, tmp_path):
        augmentations = make(tmp_path, speed_factors=[1, 2], far_field_distances=[1], **only("speed", "far_field"))
        rng = np.random.default_rng(0)
        for turn in range(4):
            augmentations.apply_waveform(speech_like(0.5), augmentations.choose(turn, 8000, rng), rng)


def names_of(choice: Choice) -> list[str]:
    return [step.name for step in choice.steps]


class TestPreparation:
    def test_background_noise_without_files_is_left_out_with_one_warning(self, tmp_path, caplog):
        config = AudioAugmentationConfig(far_field_rooms=1, far_field_distances=[1.0])
        prepare(config, tmp_path)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "bg_noise_file_list" in warnings[0]
        caplog.clear()
        assert "background_noise" not in AudioAugmentations(config, tmp_path, WINDOW).enabled
        assert not caplog.records
        assert len(enabled_augmentations(config)) == 7

    def test_fingerprint_changes_with_the_noise_files_and_not_with_their_folder(self, tmp_path):
        for folder, seconds in (("a", 1), ("b", 1), ("c", 2)):
            (tmp_path / folder).mkdir()
            soundfile.write(tmp_path / folder / "fan.wav", np.zeros(seconds * RATE), RATE)
        a, b, c = (fingerprint(AudioAugmentationConfig(bg_noise_file_list=[str(tmp_path / f)])) for f in "abc")
        assert a == b != c
        assert a != fingerprint(AudioAugmentationConfig())

    def test_a_worker_does_not_import_what_is_slow(self):
        names = "('torch', 'transformers', 'librosa', 'audiomentations', 'scipy.signal', 'pyroomacoustics', 'redis')"
        code = f"import sys, audioaugmentations; print([n for n in {names} if n in sys.modules])"
        assert run_python(code).strip() == "[]"


DIGEST = """
import hashlib, sys
import numpy as np
from pathlib import Path
from audioaugmentations import AudioAugmentations
from config import AudioAugmentationConfig
config = AudioAugmentationConfig(far_field_rooms=1, far_field_distances=[2.0], bg_noise_file_list=[sys.argv[2]])
augmentations = AudioAugmentations(config, Path(sys.argv[1]), 480000)
speech = np.random.default_rng(7).uniform(-0.5, 0.5, 20000).astype(np.float32)
digest = hashlib.sha256()
for turn in range(40):
    rng = np.random.default_rng((42, turn))
    choice = augmentations.choose(turn, len(speech), rng)
    digest.update(choice.label.encode() + augmentations.apply_waveform(speech, choice, rng).tobytes())
    digest.update(augmentations.apply_log_mel(speech.reshape(80, 250), choice, rng).tobytes())
print(digest.hexdigest())
"""


def run_python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[1]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout


def test_two_processes_make_the_same_samples_each_with_rooms_of_its_own(tmp_path, noise_dir):
    first, second = (run_python(DIGEST, tmp_path / name, noise_dir) for name in "ab")
    assert first == second


def test_global_random_state_plays_no_part(cache_dir, noise_dir):
    augmentations, digests = make(cache_dir, noise_dir), set()
    for seed in range(2):
        np.random.seed(seed)  # noqa: NPY002
        waveforms = [
            augmentations.apply_waveform(speech_like(0.5), augmentations.choose(turn, 8000, rng), rng).tobytes()
            for turn, rng in ((turn, np.random.default_rng(turn)) for turn in range(8))
        ]
        digests.add(hashlib.sha256(b"".join(waveforms)).hexdigest())
    assert len(digests) == 1


def test_simulated_rooms_differ(rooms):
    assert len({r.tobytes() for d in DISTANCES_M for r in rooms[d]}) == len(DISTANCES_M) * ROOMS
    assert np.array_equal(simulate_room(3.0, 1, RATE), rooms[3.0][1])


EVERY_STEP = [
    *(Step("speed", (f,)) for f in (0.25, 0.75, 1.0, 1.5, 4.0)),
    *(Step("pitch_shift", (s,)) for s in (-12.0, 3.0, 12.0)),
    Step("far_field", (1.0,)),
    Step("background_noise", (0.01,)),
    Step("background_noise", (0.9,)),
    *(Step("color_noise", (c, 1.0)) for c in ("white", "pink", "brown", "blue", "violet")),
    *(Step("down_upsampling", (r,)) for r in (1000.0, 2000.0, 11025.0, 16000.0)),
    Step("speech_enhancement"),
    Step("masking"),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.one_of(st.integers(1600, 20000), st.sampled_from([1600, 16001, 65536])),
    peak=st.sampled_from([0.0, 1e-38, 1e-20, 1e-9, 1e-5, 0.01, 1.0]),
    kind=st.sampled_from(["noise", "square", "click", "speech", "half silent"]),
    seed=st.integers(0, 1000),
)
def test_every_augmentation_keeps_dtype_length_and_range(cache_dir, noise_dir, samples, peak, kind, seed):
    check_rules(make(cache_dir, noise_dir), signal(kind, samples, peak, seed), seed)


@pytest.mark.parametrize("peak", [0.0, 1.0])
def test_every_augmentation_keeps_the_rules_on_thirty_seconds(cache_dir, noise_dir, peak):
    check_rules(make(cache_dir, noise_dir), signal("square", 30 * RATE, peak, 0), 0)


def signal(kind: str, samples: int, peak: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    waveform = {
        "noise": lambda: rng.uniform(-1, 1, samples),
        "square": lambda: np.sign(np.sin(np.arange(samples) * 0.05)),
        "click": lambda: np.eye(1, samples, samples // 2)[0],
        "speech": lambda: np.resize(speech_like(), samples),
        "half silent": lambda: np.where(np.arange(samples) < samples // 2, 0, rng.uniform(-1, 1, samples)),
    }[kind]()
    return (peak * waveform).astype(np.float32)


def check_rules(augmentations: AudioAugmentations, waveform: np.ndarray, seed: int) -> None:
    before = waveform.copy()
    assert {step.name for step in EVERY_STEP} == set(AUGMENTATIONS)
    for step in EVERY_STEP:
        results = [
            augmentations.apply_waveform(waveform, Choice((step,)), np.random.default_rng(seed)) for _ in range(2)
        ]
        result, again = results
        assert np.array_equal(result, again), step
        assert result.dtype == np.float32, step
        assert result.ndim == 1, step
        foretold = AUGMENTATIONS[step.name].samples_after
        assert len(result) == (foretold(len(waveform), step.option) if foretold else len(waveform)), step
        assert np.isfinite(result).all(), step
        assert np.abs(result).max() <= 1, step
        assert waveform.any() or not result.any(), f"{step} makes sound out of silence"
        assert np.array_equal(waveform, before), f"{step} writes into its input"
