"""How each runtime's files are written, and decoded again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration
from transformers.convert_slow_tokenizer import bytes_to_unicode

from common.files import written_whole
from tools.ggml_format import read_ggml, write_ggml
from tools.greedy_check import MAX_NEW_TOKENS, GreedyReference
from tools.openai_format import OUTPUT_LAYER, dimensions, openai_name, openai_tensors
from training.saved_folder import load_json

CT2_COPIED = ["tokenizer.json", "preprocessor_config.json"]
"""Files that faster-whisper reads beside the converted model."""
PT_FILE, GGML_FILE = "model.pt", "ggml-model.bin"


@dataclass(frozen=True)
class Exporter:
    """One runtime."""

    runtime: str
    quantizations: tuple[str, ...]
    write: Callable[[WhisperForConditionalGeneration, Path, Path, str], None]
    """Model, folder with the model as transformers saves it, folder to write to, quantization."""
    decode: Callable[[GreedyReference, Path], list[list[int]]]
    """What the runtime writes for each sample of the reference, from the folder that was written."""
    usage: str
    """How to use what was written."""
    needs_openai_vocabulary: bool = False


def _write_ct2(model: WhisperForConditionalGeneration, plain: Path, output: Path, quantization: str) -> None:
    """By CTranslate2's own converter."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(plain), copy_files=CT2_COPIED).convert(str(output), quantization=quantization, force=True)


def _decode_ct2(reference: GreedyReference, output: Path) -> list[list[int]]:
    import ctranslate2

    model = ctranslate2.models.Whisper(str(output), device="cpu", compute_type="default")
    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(reference.features.numpy()))
    answers = model.generate(
        features,
        [reference.prompt] * len(reference.samples),
        beam_size=1,
        max_length=2 * MAX_NEW_TOKENS,  # it writes at most half of that, leaving the rest to prompts
        suppress_blank=True,
        suppress_tokens=reference.suppressed,
    )
    return [[token for token in answer.sequences_ids[0] if token != reference.end] for answer in answers]


def _write_openai(model: WhisperForConditionalGeneration, plain: Path, output: Path, quantization: str) -> None:
    dtype = torch.float16 if quantization == "float16" else torch.float32
    tensors = {name: tensor.to(dtype) for name, tensor in openai_tensors(model).items()}
    with written_whole(output / PT_FILE) as file:
        torch.save({"dims": dimensions(model.config), "model_state_dict": tensors}, file)


def _decode_openai(reference: GreedyReference, output: Path) -> list[list[int]]:
    import whisper

    model = whisper.load_model(str(output / PT_FILE), device="cpu")
    with torch.inference_mode():
        heard = model.embed_audio(reference.features)

        def next_logits(sample: int, tokens: list[int]) -> np.ndarray:
            return np.asarray(model.logits(torch.tensor([tokens]), heard[sample : sample + 1])[0, -1].float())

        return reference.greedy(next_logits)


def _write_ggml(model: WhisperForConditionalGeneration, plain: Path, output: Path, quantization: str) -> None:
    """whisper.cpp's converter is a script that no registry has: its format is written here."""
    extractor = load_json(plain / "preprocessor_config.json")
    filters = _mel_filters(extractor["feature_size"], extractor["n_fft"], extractor["sampling_rate"])
    tensors = {name: tensor.float().numpy() for name, tensor in openai_tensors(model).items()}
    with written_whole(output / GGML_FILE) as file:
        write_ggml(
            file, dimensions(model.config), filters, _token_bytes(plain), tensors, half=quantization == "float16"
        )


def _mel_filters(bins: int, n_fft: int, sampling_rate: int) -> np.ndarray:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(n_fft // 2 + 1, bins, 0.0, sampling_rate / 2, sampling_rate, "slaney", "slaney")
    return np.ascontiguousarray(filters.T, np.float32)


def _token_bytes(plain: Path) -> list[bytes]:
    """The bytes behind each token of vocab.json, by id. Source: `bytes_to_unicode` of GPT-2's tokenizer."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary: dict[str, int] = load_json(plain / "vocab.json")
    return [
        bytes(byte_of[character] for character in token) for token in sorted(vocabulary, key=vocabulary.__getitem__)
    ]


def _decode_ggml(reference: GreedyReference, output: Path) -> list[list[int]]:
    """Reads the file back into a model of transformers: whisper.cpp itself is not run."""
    with (output / GGML_FILE).open("rb") as file:
        _, _, _, tensors = read_ggml(file)
    model = copy.deepcopy(reference.model)
    state = {
        name: torch.from_numpy(tensors[openai_name(name)].astype(np.float32))
        for name in model.state_dict()
        if name != OUTPUT_LAYER
    }
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.inference_mode():
        heard = model.model.encoder(reference.features).last_hidden_state

        def next_logits(sample: int, tokens: list[int]) -> np.ndarray:
            answer = model(encoder_outputs=(heard[sample : sample + 1],), decoder_input_ids=torch.tensor([tokens]))
            return np.asarray(answer.logits[0, -1])

        return reference.greedy(next_logits)


EXPORTERS = {
    "ct2": Exporter(
        "faster-whisper",
        ("float32", "float16", "int8"),
        _write_ct2,
        _decode_ct2,
        'faster_whisper.WhisperModel("{output}").transcribe("FILE")',
        needs_openai_vocabulary=True,
    ),
    "ggml": Exporter(
        "whisper.cpp",
        ("float32", "float16"),
        _write_ggml,
        _decode_ggml,
        f"whisper-cli -m {{output}}/{GGML_FILE} -f FILE.wav",
        needs_openai_vocabulary=True,
    ),
    "openai": Exporter(
        "openai-whisper",
        ("float32", "float16"),
        _write_openai,
        _decode_openai,
        f'whisper.load_model("{{output}}/{PT_FILE}").transcribe("FILE")',
        needs_openai_vocabulary=True,
    ),
}
"""By the name that `--to` takes."""
