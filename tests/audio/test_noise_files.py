"""Which files of a noise folder are used, and what is told of those that can't be."""

from __future__ import annotations

import os
import time

import numpy as np
import psutil
import pytest
import soundfile

from audio.noise_sources import BackgroundNoiseError, NoiseRecordings, check_noise, list_noise_files
from tests.audio.encoded import encode

RATE_HZ = 16_000
NOISE = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE_HZ)


def test_what_a_mac_puts_beside_a_file_is_no_noise(tmp_path):
    soundfile.write(tmp_path / "rain.flac", NOISE, RATE_HZ)
    (tmp_path / "._rain.flac").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100))
    assert list_noise_files([str(tmp_path)]) == [tmp_path / "rain.flac"]


def test_a_noise_file_from_a_pipe_starts_at_once_and_in_little_memory(tmp_path):
    path = tmp_path / "rain.flac"
    soundfile.write(path, NOISE, RATE_HZ)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])  # the length, which a pipe can't go back for
    path.write_bytes(content)
    before, started = psutil.Process().memory_info().rss, time.process_time()
    crop = NoiseRecordings([str(tmp_path)], RATE_HZ).crop(RATE_HZ, np.random.default_rng(0))
    assert time.process_time() - started < 5
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
    assert 0.09 < crop.std() < 0.11


def test_noise_in_the_formats_of_ffmpeg_is_used(tmp_path):
    encode(tmp_path / "rain.m4a", NOISE, RATE_HZ)
    assert 0.08 < NoiseRecordings([str(tmp_path)], RATE_HZ).crop(RATE_HZ, np.random.default_rng(0)).std() < 0.12


@pytest.mark.parametrize("kind", ["pipe", "empty", "text", "nan"])
def test_a_bad_noise_file_is_told_by_name_before_anything_else(tmp_path, kind):
    path = tmp_path / "bad.wav"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "nan":
        soundfile.write(path, np.full(RATE_HZ, np.nan), RATE_HZ, subtype="FLOAT")
    else:
        path.write_bytes(b"no audio" if kind == "text" else b"")
    with pytest.raises(BackgroundNoiseError, match=r"bad\.wav.*bg_noise_file_list"):
        check_noise([str(path)])
