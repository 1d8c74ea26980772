"""What a manifest says of a recording decides what its sample is made of."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from audio.audio_file import RecordingError
from audio.waveform import CANCELLED
from config import DataConfig, ModelConfig
from data_processor import SampleSettings, make_sample
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from features.log_mel import log_mel
from producing.producer_report import Tally
from producing.worker_pool import SampleMaker
from tests.conftest import tone

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def settings(tiny_checkpoint) -> SampleSettings:
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))
    return SampleSettings(load_feature_spec(str(tiny_checkpoint)), encoder, DataConfig())


def write_lines(tmp_path, rows: list[dict]):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_segments_and_channels_of_one_file_are_samples_of_their_own(tmp_path, load, settings):
    tones = [np.concatenate([tone(1.0, hz), tone(1.0, 2 * hz)]) for hz in (300.0, 500.0)]
    soundfile.write(tmp_path / "call.wav", np.stack(tones, axis=1), RATE_HZ, subtype="FLOAT")
    named = [
        {"audio": "call.wav", "text": "one", "offset": offset, "duration": 1.0, "channel": channel}
        for channel in (0, 1) for offset in (0.0, 1.0)
    ]  # fmt: skip
    recordings = load(write_lines(tmp_path, named))
    assert len({recording.id for recording in map(recordings.__getitem__, range(4))}) == 4
    for number, hz in enumerate((300.0, 600.0, 500.0, 1000.0)):
        sample = make_sample(recordings[number], number, settings)
        assert sample.duration_s == 1.0
        start = RATE_HZ * (number % 2)
        expected = tones[number // 2][start : start + RATE_HZ]
        features, _ = log_mel(expected / np.abs(expected).max(), settings.spec)
        np.testing.assert_allclose(sample.input_features, features, atol=1e-4, err_msg=f"{hz} Hz")


def test_audio_shorter_than_its_manifest_says_is_refused(tmp_path, load, settings):
    soundfile.write(tmp_path / "half.wav", tone(1.0), RATE_HZ)
    rows = [{"audio": "half.wav", "text": "one", "duration": duration} for duration in (2.0, 1.05, None)]
    recordings = load(write_lines(tmp_path, rows))
    assert [recordings[number].claimed_duration_s for number in range(3)] == [2.0, pytest.approx(1.05), None]
    with pytest.raises(RecordingError, match=r"truncated: 1.00 s of audio where the manifest says 2.00 s"):
        make_sample(recordings[0], 0, settings)
    assert all(make_sample(recordings[number], 0, settings).duration_s == 1.0 for number in (1, 2))


def test_silence_is_no_training_sample_but_may_be_evaluated(tmp_path, load, settings):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    recording = load(write_lines(tmp_path, [{"audio": "silent.wav", "text": "one"}]))[0]
    with pytest.raises(RecordingError, match="silence: all samples are 0"):
        make_sample(recording, 0, settings)
    evaluated = SampleSettings(settings.spec, settings.encoder, settings.data, refuse_silence=False)
    assert make_sample(recording, 0, evaluated).duration_s == 1.0


def test_the_producer_replaces_what_is_shorter_than_claimed_and_reports_it(tmp_path, recipe_of):
    soundfile.write(tmp_path / "whole.wav", tone(1.0), RATE_HZ)
    rows = [{"audio": "whole.wav", "text": "one", "id": "claims", "duration": 3.0}]
    rows += [{"audio": "whole.wav", "text": "one", "id": f"fine{number}", "duration": 1.0} for number in range(4)]
    recipe = recipe_of(write_lines(tmp_path, rows), augmented_copies=0, epochs=1)
    chunk = SampleMaker(recipe).make_chunk(0, 5)
    assert all(chunk.payloads)
    assert [json.loads(line)["id"] for line in chunk.rejected] == ["claims"]


def test_channels_that_cancel_each_other_out_are_counted_and_one_of_them_is_used(tmp_path, recipe_of):
    left = tone(1.0)
    soundfile.write(tmp_path / "inverted.wav", np.stack([left, -left], axis=1), RATE_HZ)
    soundfile.write(tmp_path / "left.wav", left, RATE_HZ)
    rows = [{"audio": f"{name}.wav", "text": "one"} for name in ("inverted", "left")]
    recipe = recipe_of(write_lines(tmp_path, rows), augmented_copies=0, epochs=1)
    chunk = SampleMaker(recipe).make_chunk(0, 2)
    assert chunk.notes == {CANCELLED: 1}
    tally = Tally()
    tally.add(chunk)
    assert f"1 {CANCELLED}" in tally.report(2, 2, 0.0, 0, tmp_path)
