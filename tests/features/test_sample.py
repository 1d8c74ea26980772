"""A sample survives its way through Redis; anything else in the list is refused.

`make fuzz` runs the tests of random damage at length: FUZZ_EXAMPLES inputs to each of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from features.sample import (
    CRC_DIGITS,
    CRC_START,
    IGNORED_LABEL,
    OPENING,
    PayloadError,
    Sample,
    SampleLimits,
    decode_sample,
    encode_sample,
    pad_batch,
)

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


def forged(header: object, data: bytes) -> bytes:
    """What somebody who knows how samples look could write: any header, with the checksum right."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    if text.startswith(b'{"__metadata__":{'):
        text = OPENING + b"0" * CRC_DIGITS + (b'",' if text[17:18] != b"}" else b'"') + text[17:]
    return with_checksum(len(text).to_bytes(8, "little") + text + data)


def with_checksum(payload: bytes) -> bytes:
    """The payload with the checksum that its other bytes have."""
    rest = payload[CRC_START + CRC_DIGITS :]
    return payload[:CRC_START] + b"%08x" % zlib.crc32(rest, zlib.crc32(payload[:CRC_START])) + rest


METADATA = {"position": "41", "id": "a", "pad_value": "0", "augmentation": "none", "duration_s": "1", "plan": "abc"}


def foreign(features=np.float16, labels=np.int32, metadata=METADATA, names=("input_features", "labels")) -> bytes:
    """A sample in number formats, with metadata and tensors that we do not write."""
    kinds = {"float16": "F16", "float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64"}
    arrays = np.zeros((80, 10), features), np.array([START], labels)
    header: dict = {"__metadata__": metadata} if metadata is not None else {}
    start = 0
    for name, array in zip(names, arrays, strict=False):
        stop = start + array.nbytes
        header[name] = {"dtype": kinds[array.dtype.name], "shape": array.shape, "data_offsets": [start, stop]}
        start = stop
    return forged(header, b"".join(array.tobytes() for array in arrays)[:start])


def test_a_forgery_that_is_right_in_all_respects_is_read():
    """So that the refusals below are due to what they change."""
    assert read(foreign()).id == "a"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "does not begin as a sample does"),
        (b"\0" * 8, "does not begin as a sample does"),
        (b"nothing of the kind", r"but with b'nothing of the kind'"),
        (encode_sample(SAMPLE)[:20], "does not begin"),
        (encode_sample(SAMPLE)[: CRC_START + 3], "checksum"),
        (encode_sample(SAMPLE)[:100], "checksum"),
        (encode_sample(SAMPLE)[:-1], "checksum"),
        (encode_sample(SAMPLE) + b"\0", "checksum"),
        (with_checksum(encode_sample(SAMPLE)[:100]), "(?i)header"),
        (with_checksum(encode_sample(SAMPLE)[:-1]), "(?i)metadata"),
        (with_checksum(encode_sample(SAMPLE) + b"\0"), "(?i)metadata"),
        (foreign(features=np.float64), "number formats F64 and I32"),
        (foreign(labels=np.int64), "number formats F16 and I64"),
        (foreign(names=["input_features"]), r"found \['input_features'\]"),
        (foreign(names=["input_features", "text"]), r"found \['input_features', 'text'\]"),
        (foreign(metadata=None), "does not begin"),
        (foreign(metadata={}), "no 'position' in it"),
        (foreign(metadata=METADATA | {"position": "x"}), "invalid literal for int"),
        (foreign(metadata=METADATA | {"pad_value": "nan"}), "NaN"),
        (safetensors.numpy.save({"input_features": SAMPLE.input_features, "labels": SAMPLE.labels}, METADATA),
         "does not begin"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_damaged_bytes_are_refused_with_the_reason(payload, reason):
    with pytest.raises(PayloadError, match=reason) as refusal:
        read(payload)
    assert "position 41 in Redis key 'ns:samples'" in str(refusal.value)
    assert "`python redis_manager.py clear`" in str(refusal.value)


def test_a_sample_with_any_single_bit_flipped_is_refused():
    """Damage that leaves the features finite and the labels in range is seen by nothing but the checksum."""
    payload = encode_sample(dataclasses.replace(SAMPLE, input_features=SAMPLE.input_features[:, :3]))
    for index in range(len(payload)):
        damaged = bytearray(payload)
        damaged[index] ^= 1 << index % 8
        with pytest.raises(PayloadError):
            read(bytes(damaged))


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


# --- fuzzing ---

FUZZ = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "200")), deadline=None)
SMALL = dataclasses.replace(SAMPLE, input_features=SAMPLE.input_features[:, :7])
SMALL_BYTES = encode_sample(SMALL)


def assert_refused_or_usable(payload: bytes) -> None:
    """A decoder may do two things: refuse, or give back what a model can be trained on."""
    try:
        back = read(payload)
    except PayloadError:
        return
    frames, tokens = back.input_features.shape[1], len(back.labels)
    assert back.position == 41
    assert back.plan == "abc"
    assert back.input_features.dtype in (np.float16, np.float32)
    assert back.input_features.shape[0] == 80
    assert 1 <= frames <= 3000
    assert back.labels.dtype == np.int32
    assert 1 <= tokens <= 20
    assert 0 <= back.labels.min() <= back.labels.max() < 1000
    assert np.isfinite(back.input_features).all()
    assert np.isfinite([back.pad_value, back.duration_s]).all()
    assert isinstance(back.id, str)
    assert pad_batch([back], 3000, START)["input_features"].shape == (1, 80, 3000)


@FUZZ
@given(st.binary(max_size=300))
def test_fuzz_random_bytes_are_refused(payload):
    with pytest.raises(PayloadError):
        read(payload)


@st.composite
def damaged_payloads(draw: st.DrawFn) -> bytes:
    """A sample with bytes changed, cut out, put in, or cut off, most of them in its header."""
    payload = bytearray(SMALL_BYTES)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, 450), st.integers(0, len(SMALL_BYTES))))
        length = draw(st.integers(0, 6))
        payload[place : place + length] = draw(st.binary(max_size=6))
    return bytes(payload[: draw(st.integers(0, len(payload)))] if draw(st.booleans()) else payload)


@FUZZ
@given(damaged_payloads())
def test_fuzz_damage_is_refused(payload):
    if payload != SMALL_BYTES:
        with pytest.raises(PayloadError):
            read(payload)


@FUZZ
@given(damaged_payloads())
def test_fuzz_damage_with_the_right_checksum_is_refused_or_usable(payload):
    assert_refused_or_usable(with_checksum(payload))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
VALUES = {
    "figure": st.one_of(
        st.sampled_from(["41", "0", "-1.5", "nan", "-inf", "1e999", "9" * 5000, "٤١", " 41", ""]), JSON
    ),
    "dtype": st.one_of(st.sampled_from(["F16", "F32", "I32", "F64", "I64", "BF16", "U8", "BOOL", "F8_E4M3"]), JSON),
    "shape": st.one_of(st.lists(st.sampled_from([0, 1, 2, 4, 7, 80, 560, 2**31, 2**63, -1]), max_size=3), JSON),
    "data_offsets": st.one_of(st.sampled_from([[0, 0], [0, 1136], [1120, 1120], [0, 2**63], [1136, 1120]]), JSON),
}


@st.composite
def forgeries(draw: st.DrawFn) -> bytes:
    """A sample whose header is right but for a thing or two, or all of it; and any tensors behind it."""
    header: dict = {
        "__metadata__": METADATA.copy(),
        "input_features": {"dtype": "F16", "shape": [80, 7], "data_offsets": [0, 1120]},
        "labels": {"dtype": "I32", "shape": [4], "data_offsets": [1120, 1136]},
    }
    for _ in range(draw(st.integers(0, 2))):
        part = draw(st.sampled_from(["__metadata__", "__metadata__", *header]))
        key = draw(st.sampled_from([*header[part], "more"])) if isinstance(header.get(part), dict) else None
        action = draw(st.sampled_from(["set", "set", "set", "delete", "replace the part"]))
        if key is None or action == "replace the part":
            header[part] = draw(JSON)
        elif action == "set":
            header[part][key] = draw(VALUES.get(key, VALUES["figure"]))
        else:
            header[part].pop(key, None)
    features = draw(st.one_of(st.just(SMALL_BYTES[-1136:-16]), st.binary(min_size=1120, max_size=1120)))
    labels = draw(st.one_of(st.just(SMALL_BYTES[-16:]), st.binary(max_size=20)))
    return forged(header, features + labels)


@FUZZ
@given(forgeries())
def test_fuzz_forgeries_are_refused_or_usable(payload):
    assert_refused_or_usable(payload)


def test_a_header_nested_without_end_is_refused():
    for deep in (b"[" * 100_000, b'{"a":' * 100_000):
        text = OPENING + b'00000000","x":' + deep
        with pytest.raises(PayloadError):
            read(with_checksum(len(text).to_bytes(8, "little") + text))


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
