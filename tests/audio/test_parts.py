"""A part of a file is decoded alone, and is to the sample what the whole file has there."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio.audio_file import RecordingError, open_audio
from audio.part import Part
from audio.waveform import load_waveform, recording_duration_s
from config import DataConfig
from features.feature_spec import FeatureSpec
from tests.audio.encoded import encode
from tests.audio.test_containers import without_xing

RATE_HZ = 44_100
SECONDS = 40
SPEC, DATA = FeatureSpec(80, RATE_HZ, 400, 160, 30), DataConfig(peak_normalize=False)
WHISPER = FeatureSpec(80, 16_000, 400, 160, 30)
KINDS = ["flac", "wav", "ogg", "opus", "mp3", "frames.mp3", "m4a", "aac.m4a", "mkv"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 40 s in all formats: longer than a recording may be."""
    folder = tmp_path_factory.mktemp("parts")
    time_s = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    waveform = 0.4 * np.sin(2 * np.pi * (200 * time_s + 20 * time_s**2)) * (0.6 + 0.4 * np.sin(9 * time_s))
    waveform += 0.02 * np.random.default_rng(0).standard_normal(len(time_s))
    for kind in ("flac", "wav", "ogg"):
        soundfile.write(folder / f"a.{kind}", waveform, RATE_HZ)
    soundfile.write(folder / "a.opus", waveform[: SECONDS * 24_000], 24_000, format="OGG", subtype="OPUS")
    soundfile.write(folder / "a.mp3", waveform, RATE_HZ, bitrate_mode="VARIABLE", compression_level=0.5)
    (folder / "a.frames.mp3").write_bytes(without_xing(folder / "a.mp3"))
    encode(folder / "a.m4a", waveform, RATE_HZ, codec="alac")
    encode(folder / "a.aac.m4a", waveform, RATE_HZ, codec="aac")
    encode(folder / "a.mkv", waveform, RATE_HZ)
    return folder


def whole(path: Path) -> np.ndarray:
    """All samples, more than a recording may have."""
    with open_audio(path) as file:
        return np.concatenate(list(file.blocks(0, 10**8)))[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_to_the_sample_what_the_whole_file_has_there(files, kind):
    path, everything = files / f"a.{kind}", whole(files / f"a.{kind}")
    rate = 24_000 if kind == "opus" else RATE_HZ
    spec = FeatureSpec(80, rate, 400, 160, 30)
    for offset_s, duration_s in ((0.0, 0.5), (0.0131, 1.0), (12.34, 3.52), (33.0, 1.0), (38.5, 1.5)):
        found = load_waveform(path, spec, DATA, Part(offset_s, duration_s))
        begin, end = round(offset_s * rate), round((offset_s + duration_s) * rate)
        expected = everything[begin:end]
        if kind == "aac.m4a":  # its decoder draws random noise where the encoder left only the noise's level
            assert np.corrcoef(found, expected[: len(found)])[0, 1] > 0.99
        elif kind == "opus":  # its decoder's memory fades, but does not end
            np.testing.assert_allclose(found, expected, atol=3e-3)
        else:
            np.testing.assert_allclose(found, expected, atol=1e-7, strict=True)  # libmpg123 rounds anew after a seek
        assert recording_duration_s(str(path), DATA, Part(offset_s, duration_s)) == pytest.approx(duration_s, abs=1e-3)


def test_parts_in_a_row_leave_no_gap_and_share_no_sample(files):
    ends = [0.0, 0.3333, 1.00001, 2.5, 2.7182818]
    parts = [Part(a, b - a) for a, b in itertools.pairwise(ends)]
    found = np.concatenate([load_waveform(files / "a.flac", SPEC, DATA, part) for part in parts])
    np.testing.assert_array_equal(found, whole(files / "a.flac")[: len(found)])
    assert len(found) == round(2.7182818 * RATE_HZ)


def test_a_part_is_resampled_by_itself(files):
    import soxr

    part = load_waveform(files / "a.wav", WHISPER, DATA, Part(5.0, 2.0))
    alone = soxr.resample(whole(files / "a.wav")[5 * RATE_HZ : 7 * RATE_HZ], RATE_HZ, 16_000, quality="HQ")
    np.testing.assert_array_equal(part, alone)


def test_a_part_without_an_end_goes_to_the_end_of_the_file(files):
    assert len(load_waveform(files / "a.mp3", SPEC, DATA, Part(38.0))) == pytest.approx(2 * RATE_HZ, abs=10)
    assert recording_duration_s(str(files / "a.mkv"), DATA, Part(38.0)) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "m4a", "mkv"])
@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Part(50.0, 1.0), r"begins at 50\.00 s, but the file ends at 40\.\d\d s"),
        (Part(39.5, 1.0), r"ends at 40\.50 s, but the file ends at 40\.\d\d s"),
        (Part(1.0, 1.0, 2), "no channel 2: the file has channel 0"),
    ],
)
def test_a_part_that_the_file_does_not_have_is_refused(files, kind, part, reason):
    for refused in (load_waveform, lambda path, spec, data, part: recording_duration_s(str(path), data, part)):
        with pytest.raises(RecordingError, match=reason):
            refused(files / f"a.{kind}", SPEC, DATA, part)


def test_limits_are_for_the_part_and_not_for_its_file(files):
    with pytest.raises(RecordingError, match="too long: 40"):
        load_waveform(files / "a.wav", SPEC, DATA)
    for kind in KINDS:
        with pytest.raises(RecordingError, match="too long"):
            load_waveform(files / f"a.{kind}", SPEC, DATA, Part(1.0, 31.0))
        with pytest.raises(RecordingError, match="too short"):
            load_waveform(files / f"a.{kind}", SPEC, DATA, Part(1.0, 0.01))


def test_the_whole_parts_of_a_file_that_was_cut_short_can_be_used(files, tmp_path):
    content = (files / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    assert len(load_waveform(tmp_path / "cut.wav", SPEC, DATA, Part(10.0, 2.0))) == 2 * RATE_HZ
    with pytest.raises(RecordingError, match=r"ends at 21\.00 s, but the file ends at 20\.00 s"):
        load_waveform(tmp_path / "cut.wav", SPEC, DATA, Part(19.0, 2.0))
