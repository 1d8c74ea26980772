"""A sample: its form in memory, its bytes in Redis, and how samples become a padded batch.

The bytes are safetensors: two tensors and a header of strings. Nothing in them is ever executed, and everything that is
read back is checked, because whoever can reach the server can write to the list.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors

from common.errors import UserError

IGNORED_LABEL = -100
"""Label that the loss skips. Source: `torch.nn.CrossEntropyLoss(ignore_index)`."""
SAFETENSORS_NAMES = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}
"""What safetensors calls the number formats of a sample."""
FEATURE_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
"""The formats that features may have."""

OPENING = b'{"__metadata__":{"crc32":"'
"""How the header of every sample begins: the checksum comes first, so that it is found before anything is parsed."""
CRC_START = 8 + len(OPENING)
"""Where the checksum stands in the bytes of a sample, behind the length of the header."""
CRC_DIGITS = 8
"""Length of the checksum: a CRC-32 in hexadecimal."""


class PayloadError(UserError):
    """Bytes from the queue that are not the sample they should be."""


@dataclass(frozen=True)
class Sample:
    """One labelled log-mel of the stream."""

    input_features: np.ndarray
    """float16 or float32 `[num_mel_bins, frames]`: only the frames that hold audio."""
    labels: np.ndarray
    """int32 `[tokens]`, from `<|startoftranscript|>` to `<|endoftext|>`."""
    position: int
    """Place in the plan, from 0."""
    id: str
    """The recording's id in the manifest."""
    pad_value: float
    """Value of every frame after `input_features` in the model's window."""
    augmentation: str
    """What was done to the recording: "original", "speed=1.25", …"""
    duration_s: float
    """Duration of the audio behind the features, in seconds."""
    plan: str
    """Fingerprint of the plan that the sample belongs to."""


def encode_sample(sample: Sample) -> bytes:
    """The sample as safetensors bytes: equal samples give equal bytes.

    The header is written here because the library's own writer puts it in an order that differs from call to call. It
    begins with a checksum of all the other bytes.

    Source: the safetensors format: length of the header (uint64, little-endian), header (JSON, padded to 8), tensors.
    """
    features, labels = (np.ascontiguousarray(tensor) for tensor in (sample.input_features, sample.labels))
    end = features.nbytes + labels.nbytes
    header = {
        "__metadata__": {
            "crc32": "0" * CRC_DIGITS,
            "position": str(sample.position),
            "id": sample.id,
            "pad_value": repr(sample.pad_value),
            "augmentation": sample.augmentation,
            "duration_s": repr(sample.duration_s),
            "plan": sample.plan,
        },
        "input_features": {
            "dtype": SAFETENSORS_NAMES[features.dtype],
            "shape": features.shape,
            "data_offsets": [0, features.nbytes],
        },
        "labels": {
            "dtype": SAFETENSORS_NAMES[labels.dtype],
            "shape": labels.shape,
            "data_offsets": [features.nbytes, end],
        },
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = len(text).to_bytes(8, "little") + OPENING
    rest = text[CRC_START - 8 + CRC_DIGITS :]
    return b"".join((begin, _checksum(begin, rest, features.data, labels.data), rest, features.data, labels.data))


def _checksum(*parts: bytes | memoryview) -> bytes:
    """CRC-32 of the parts one behind the other, as `CRC_DIGITS` hexadecimal digits."""
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"%08x" % checksum


@dataclass(frozen=True)
class SampleLimits:
    """What a model takes."""

    num_mel_bins: int
    window_frames: int
    """Most log-mel frames."""
    max_tokens: int
    """Most labels, the start token included."""
    vocabulary: int
    """Labels lie below it."""


def decode_sample(payload: bytes, *, key: str, position: int, plan: str, limits: SampleLimits) -> Sample:
    """Reads a sample back and checks that it is the expected one.

    Args:
        payload: what `encode_sample` made.
        key: the Redis key it was read from, for messages.
        position: the position it must have.
        plan: the fingerprint it must have.
        limits: what the model takes.

    Raises:
        PayloadError: the bytes are damaged or foreign; the message says what is wrong, where, and what to do.
    """
    try:
        sample = _parse(payload)
        _check(sample, position, plan, limits)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise PayloadError(
            f"the sample at position {position} in Redis key {key!r} is damaged or foreign: {reason}. It was not used. "
            "Find out who else writes to this server, run `python redis_manager.py clear` with the same --redis.* "
            "flags, and start both scripts again: what was queued is made again, and nothing is lost"
        ) from error
    return sample


def _parse(payload: bytes) -> Sample:
    whole, crc_stop = memoryview(payload), CRC_START + CRC_DIGITS
    if payload[8:CRC_START] != OPENING:
        raise ValueError(f"it does not begin as a sample does, but with {payload[:24]!r}")
    if payload[CRC_START:crc_stop] != _checksum(whole[:CRC_START], whole[crc_stop:]):
        raise ValueError("its checksum does not match its bytes")
    tensors: dict[str, dict[str, Any]] = dict(safetensors.deserialize(payload))
    header_bytes = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + header_bytes])["__metadata__"]
    if set(tensors) != {"input_features", "labels"}:
        raise ValueError(f"expected the tensors input_features and labels, found {sorted(tensors)}")
    features, labels = tensors["input_features"], tensors["labels"]
    if features["dtype"] not in FEATURE_DTYPES or labels["dtype"] != "I32":
        raise ValueError(f"number formats {features['dtype']} and {labels['dtype']}, expected F16 or F32 and I32")
    return Sample(
        input_features=np.frombuffer(features["data"], FEATURE_DTYPES[features["dtype"]]).reshape(features["shape"]),
        labels=np.frombuffer(labels["data"], np.int32).reshape(labels["shape"]),
        position=int(header["position"]),
        id=header["id"],
        pad_value=float(header["pad_value"]),
        augmentation=header["augmentation"],
        duration_s=float(header["duration_s"]),
        plan=header["plan"],
    )


def _check(sample: Sample, position: int, plan: str, limits: SampleLimits) -> None:
    if sample.position != position:
        raise ValueError(f"it says position {sample.position}")
    if sample.plan != plan:
        raise ValueError(f"it belongs to plan {sample.plan!r}, this run's is {plan!r}")
    shape, bins, frames = sample.input_features.shape, limits.num_mel_bins, limits.window_frames
    if len(shape) != 2 or shape[0] != bins or not 0 < shape[1] <= frames:
        raise ValueError(f"features of shape {list(shape)}, expected [{bins}, 1 to {frames}]")
    if sample.labels.ndim != 1 or not 0 < len(sample.labels) <= limits.max_tokens:
        raise ValueError(f"labels of shape {list(sample.labels.shape)}, expected [1 to {limits.max_tokens}]")
    if sample.labels.min() < 0 or sample.labels.max() >= limits.vocabulary:
        raise ValueError(
            f"labels from {sample.labels.min()} to {sample.labels.max()}, expected 0 to {limits.vocabulary - 1}"
        )
    if not (np.isfinite(sample.input_features).all() and np.isfinite([sample.pad_value, sample.duration_s]).all()):
        raise ValueError("it holds NaN or infinity")


def pad_batch(samples: Sequence[Sample], window_frames: int, decoder_start_token_id: int) -> dict[str, np.ndarray]:
    """Pads samples to the batch that the model takes.

    The start token is cut when every row begins with it: the model puts it in front of the labels by itself.

    Args:
        samples: at least one.
        window_frames: frames of the model's window.
        decoder_start_token_id: the model's own.

    Returns:
        `input_features`, float32 `[batch, num_mel_bins, window_frames]`, and `labels`, int64 `[batch, tokens]`,
        padded with -100.
    """
    num_mel_bins = samples[0].input_features.shape[0]
    features = np.empty((len(samples), num_mel_bins, window_frames), np.float32)
    for row, sample in zip(features, samples, strict=True):
        frames = sample.input_features.shape[1]
        row[:, :frames] = sample.input_features
        row[:, frames:] = sample.pad_value
    starts = int(all(sample.labels[0] == decoder_start_token_id for sample in samples))
    labels = np.full((len(samples), max(len(sample.labels) for sample in samples) - starts), IGNORED_LABEL, np.int64)
    for label_row, sample in zip(labels, samples, strict=True):
        label_row[: len(sample.labels) - starts] = sample.labels[starts:]
    return {"input_features": features, "labels": labels}
