"""A sample survives its way through Redis; anything else in the list is refused."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sample import IGNORED_LABEL, PayloadError, Sample, SampleLimits, decode_sample, encode_sample, pad_batch

START = 7
SAMPLE = Sample(
    input_features=np.linspace(-1, 1.5, 80 * 332, dtype=np.float16).reshape(80, 332),
    labels=np.array([START, 1, 2, 3], np.int32),
    position=41,
    id="ক্লিপ 41",
    pad_value=-1.5,
    augmentation="speed=1.25",
    duration_s=3.3,
    plan="abc",
)


LIMITS = SampleLimits(num_mel_bins=80, window_frames=3000, max_tokens=20, vocabulary=1000)


def read(payload: bytes) -> Sample:
    return decode_sample(payload, key="ns:samples", position=41, plan="abc", limits=LIMITS)


def test_a_sample_comes_back_as_it_was():
    back = read(encode_sample(SAMPLE))
    for name in (field.name for field in dataclasses.fields(Sample)):
        np.testing.assert_array_equal(getattr(back, name), getattr(SAMPLE, name))
    assert back.input_features.dtype == np.float16
    assert back.labels.dtype == np.int32


def test_a_payload_is_little_larger_than_its_features():
    assert len(encode_sample(SAMPLE)) < SAMPLE.input_features.nbytes + 500


def test_float32_features_stay_exact():
    exact = dataclasses.replace(SAMPLE, input_features=SAMPLE.input_features.astype(np.float32) / 3)
    np.testing.assert_array_equal(read(encode_sample(exact)).input_features, exact.input_features)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"position": 42}, "position 42"),
        ({"plan": "x\nz"}, r"plan 'x\\nz'"),
        ({"input_features": np.zeros((128, 10), np.float16)}, r"\[128, 10\]"),
        ({"input_features": np.zeros((80, 3001), np.float16)}, r"\[80, 3001\]"),
        ({"input_features": np.zeros((80, 0), np.float16)}, r"\[80, 0\]"),
        ({"input_features": np.zeros(80, np.float16)}, r"\[80\]"),
        ({"labels": np.zeros(0, np.int32)}, "labels"),
        ({"labels": np.array([-100], np.int32)}, "labels from -100"),
        ({"labels": np.array([5, 1000], np.int32)}, "labels from 5 to 1000, expected 0 to 999"),
        ({"labels": np.zeros(21, np.int32)}, r"labels of shape \[21\], expected \[1 to 20\]"),
        ({"input_features": np.full((80, 10), np.nan, np.float16)}, "NaN"),
        ({"pad_value": float("inf")}, "NaN or infinity"),
    ],
)
def test_a_wrong_sample_is_refused_with_key_position_and_reason(change, reason):
    payload = encode_sample(dataclasses.replace(SAMPLE, **change))
    with pytest.raises(PayloadError, match=reason) as refusal:
        read(payload)
    assert "position 41" in str(refusal.value)
    assert "ns:samples" in str(refusal.value)


def test_the_bytes_are_safetensors():
    tensors = safetensors.numpy.load(encode_sample(SAMPLE))
    np.testing.assert_array_equal(tensors["input_features"], SAMPLE.input_features)
    np.testing.assert_array_equal(tensors["labels"], SAMPLE.labels)


def foreign(features=np.float16, labels=np.int32) -> bytes:
    """A sample in number formats that we do not write."""
    tensors = {"input_features": np.zeros((80, 10), features), "labels": np.array([START], labels)}
    header = {"position": "41", "id": "a", "pad_value": "0", "augmentation": "none", "duration_s": "1", "plan": "abc"}
    return safetensors.numpy.save(tensors, header)


def test_a_sample_that_another_safetensors_writer_wrote_is_read():
    assert read(foreign()).id == "a"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0" * 8,
        encode_sample(SAMPLE)[:100],
        encode_sample(SAMPLE)[:-1],
        safetensors.numpy.save({"labels": np.zeros(1, np.int32)}),
        foreign(features=np.float64),
        foreign(labels=np.int64),
        safetensors.numpy.save({"input_features": SAMPLE.input_features, "labels": SAMPLE.labels}),
        safetensors.numpy.save({"input_features": SAMPLE.input_features, "labels": SAMPLE.labels}, {"position": "x"}),
    ],
)
def test_damaged_bytes_are_refused(payload):
    with pytest.raises(PayloadError, match="position 41"):
        read(payload)


class Canary:
    """Unpickling it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    with pytest.raises(PayloadError):
        read(pickle.dumps(Canary(tmp_path / "trace")))
    assert not (tmp_path / "trace").exists()
    pickle.loads(pickle.dumps(Canary(tmp_path / "trace")))
    assert (tmp_path / "trace").exists(), "the canary itself must work"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(payload):
    with pytest.raises(PayloadError):
        read(payload)


@settings(max_examples=300, deadline=None)
@given(index=st.integers(0, 1200), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(index, value):
    damaged = bytearray(encode_sample(SAMPLE))
    damaged[index] = value
    try:
        back = read(bytes(damaged))
    except PayloadError:
        return
    assert back.position == 41
    assert np.isfinite(back.input_features).all()


def test_a_batch_is_padded_with_each_samples_own_constant():
    short = dataclasses.replace(SAMPLE, input_features=SAMPLE.input_features[:, :5], pad_value=-0.25)
    batch = pad_batch([SAMPLE, short], window_frames=400, decoder_start_token_id=START)
    features = batch["input_features"]
    assert features.shape == (2, 80, 400)
    assert features.dtype == np.float32
    assert (features[0, :, 332:] == -1.5).all()
    assert (features[1, :, 5:] == -0.25).all()
    np.testing.assert_array_equal(features[1, :, :5], short.input_features)


def test_labels_lose_their_start_token_and_are_padded_for_the_loss():
    longer = dataclasses.replace(SAMPLE, labels=np.array([START, 4, 5, 6, 7, 8], np.int32))
    labels = pad_batch([SAMPLE, longer], window_frames=400, decoder_start_token_id=START)["labels"]
    assert labels.dtype == np.int64
    assert labels.tolist() == [[1, 2, 3, IGNORED_LABEL, IGNORED_LABEL], [4, 5, 6, 7, 8]]


def test_labels_without_a_start_token_are_left_alone():
    other = dataclasses.replace(SAMPLE, labels=np.array([9, 1], np.int32))
    labels = pad_batch([SAMPLE, other], window_frames=400, decoder_start_token_id=START)["labels"]
    assert labels.tolist() == [[START, 1, 2, 3], [9, 1, IGNORED_LABEL, IGNORED_LABEL]]
