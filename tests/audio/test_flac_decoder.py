"""Without miniaudio, or with one that has changed, FLAC is decoded by libsndfile, to the same numbers."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from audio import flac_decoder
from audio.waveform import load_waveform
from config import DataConfig
from features.feature_spec import load_feature_spec


@pytest.mark.parametrize(
    "miniaudio", [None, types.ModuleType("miniaudio"), types.SimpleNamespace(ffi=object(), lib=object())]
)
def test_a_miniaudio_that_cannot_be_used_changes_nothing_but_the_speed(
    tiny_checkpoint, write_recording, monkeypatch, caplog, miniaudio
):
    path, spec = write_recording("clip.flac"), load_feature_spec(str(tiny_checkpoint))
    flac_decoder._load_miniaudio.cache_clear()
    expected = load_waveform(path, spec, DataConfig())
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "miniaudio", miniaudio)
    flac_decoder._load_miniaudio.cache_clear()
    for _ in range(2):
        np.testing.assert_array_equal(load_waveform(path, spec, DataConfig()), expected)
    assert caplog.text.count("FLAC is decoded by libsndfile") == 1
    flac_decoder._load_miniaudio.cache_clear()
