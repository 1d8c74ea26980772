"""Of several channels their mean is used, or the one that is asked for, or one when they cancel each other out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio.part import Part
from audio.waveform import CANCELLED, load_waveform
from config import DataConfig
from features.feature_spec import FeatureSpec
from tests.audio.test_containers import RATE_HZ, speech

SPEC, DATA = FeatureSpec(80, 16_000, 400, 160, 30), DataConfig()
X = speech(1.0)
HISS = 0.0005 * np.random.default_rng(0).standard_normal(len(X))
HUM = 0.1 * np.sin(2 * np.pi * 50 * np.arange(len(X)) / RATE_HZ)


def load(folder: Path, *channels: np.ndarray, channel: int | None = None) -> tuple[np.ndarray, Counter[str]]:
    """The waveform of a file with these channels, and what was counted."""
    path, counts = folder / "a.wav", Counter[str]()
    soundfile.write(path, np.stack(channels, 1), RATE_HZ, subtype="FLOAT")
    return load_waveform(path, SPEC, DATA, Part(channel=channel), counts=counts), counts


@pytest.mark.parametrize(
    "channels",
    [
        (X, -X), (X, -X + HISS), (X, -0.8 * X), (X + 0.2, -X + 0.2), (X, -X, HISS), (0 * X, X, -X), (X + HUM, -X + HUM),
        (X, -X, X, -X),
    ],
    ids=["exactly", "but for hiss", "at another level", "with a constant", "three", "silent first", "hum", "four"],
)  # fmt: skip
def test_of_channels_that_cancel_each_other_out_one_is_used_and_counted(tmp_path, channels):
    waveform, counts = load(tmp_path, *channels)
    assert np.corrcoef(waveform, X)[0, 1] > (0.9 if channels[0] is not X and channels[0].std() > X.std() else 0.99)
    assert counts == {CANCELLED: 1}


@pytest.mark.parametrize(
    "channels",
    [(X, X), (X, 0 * X), (X, 0.3 * X), (X, speech(1.0)[::-1]), (X, -0.4 * X), (X, *[0 * X] * 7), (0 * X + 0.1, X)],
    ids=["equal", "one silent", "softer", "two speakers", "partly", "one of eight", "constant"],
)
def test_other_channels_are_mixed(tmp_path, channels):
    waveform, counts = load(tmp_path, *channels)
    mean = np.mean(np.float32(channels), axis=0)
    np.testing.assert_allclose(waveform, mean / np.abs(mean).max(), atol=1e-6)
    assert not counts


def test_the_channel_that_is_asked_for_is_used(tmp_path):
    for number, expected in enumerate((X, X[::-1])):
        waveform, counts = load(tmp_path, X, X[::-1], channel=number)
        np.testing.assert_allclose(waveform, expected / np.abs(expected).max(), atol=1e-6)
        assert not counts
