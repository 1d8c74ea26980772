"""The file format of whisper.cpp, written and read back.

Little-endian: magic, eleven int32 of hyper-parameters, mel filters, vocabulary, then tensors until the end, each with
number of dimensions, length of its name, number format (0 float32, 1 float16), dimensions from the fastest on, name and
values.

Source: `models/convert-h5-to-ggml.py` and `whisper_model_load` of ggml-org/whisper.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np

MAGIC = 0x67676D6C
FLOAT32, FLOAT16 = 0, 1
HYPER_PARAMETERS = (
    "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state",
    "n_text_head", "n_text_layer", "n_mels",
)  # fmt: skip
"""In the order of the file; the number format of the large tensors follows them."""
_COLUMNS = ("encoder.conv1.bias", "encoder.conv2.bias")
"""Vectors that whisper.cpp wants as `[n, 1]`."""
_ALWAYS_FLOAT32 = (*_COLUMNS, "encoder.positional_embedding", "decoder.positional_embedding")


def write_ggml(
    file: IO[bytes],
    dimensions: Mapping[str, int],
    mel_filters: np.ndarray,
    vocabulary: Sequence[bytes],
    tensors: Mapping[str, np.ndarray],
    half: bool,
) -> None:
    """Writes a model.

    Args:
        file: to write to.
        dimensions: OpenAI's `ModelDimensions`.
        mel_filters: float32 `[mel bins, n_fft // 2 + 1]`.
        vocabulary: the bytes of each text token, by id; whisper.cpp adds the special tokens itself.
        tensors: under OpenAI's names.
        half: whether matrices are stored in float16.
    """
    header = [MAGIC, *(dimensions[name] for name in HYPER_PARAMETERS), FLOAT16 if half else FLOAT32]
    file.write(struct.pack(f"<{len(header)}i", *header))
    file.write(struct.pack("<2i", *mel_filters.shape) + mel_filters.astype("<f4").tobytes())
    file.write(struct.pack("<i", len(vocabulary)))
    for token in vocabulary:
        file.write(struct.pack("<i", len(token)) + token)
    for name, tensor in tensors.items():
        values = tensor.reshape(-1, 1) if name in _COLUMNS else tensor
        small = values.ndim < 2 or name in _ALWAYS_FLOAT32 or not half
        file.write(struct.pack("<3i", values.ndim, len(name), FLOAT32 if small else FLOAT16))
        file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + name.encode())
        file.write(values.astype("<f4" if small else "<f2").tobytes())


def read_ggml(file: IO[bytes]) -> tuple[dict[str, int], np.ndarray, list[bytes], dict[str, np.ndarray]]:
    """Reads back what `write_ggml` wrote.

    Returns:
        The dimensions, the mel filters, the vocabulary, and the tensors as stored; `[n, 1]` as `[n]` again.

    Raises:
        ValueError: the file is none of that format, or is cut off.
    """
    magic, *values, _ = _integers(file, len(HYPER_PARAMETERS) + 2)
    if magic != MAGIC:
        raise ValueError(f"it begins with {magic:#x}, expected {MAGIC:#x}")
    bins, frequencies = _integers(file, 2)
    mel_filters = np.frombuffer(_exactly(file, 4 * bins * frequencies), "<f4").reshape(bins, frequencies)
    vocabulary = [_exactly(file, _integers(file, 1)[0]) for _ in range(_integers(file, 1)[0])]
    tensors: dict[str, np.ndarray] = {}
    while head := file.read(12):
        dims, name_length, kind = struct.unpack("<3i", head)
        shape = tuple(reversed(_integers(file, dims)))
        name = _exactly(file, name_length).decode()
        dtype = np.dtype("<f2" if kind == FLOAT16 else "<f4")
        values_read = np.frombuffer(_exactly(file, int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
        tensors[name] = values_read[:, 0] if name in _COLUMNS else values_read
    return dict(zip(HYPER_PARAMETERS, values, strict=True)), mel_filters, vocabulary, tensors


def _integers(file: IO[bytes], count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}i", _exactly(file, 4 * count))


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise ValueError(f"the file ends {size - len(content)} bytes too early")
    return content
