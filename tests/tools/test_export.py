"""An export decodes as Hugging Face does, in the runtime it is for, or is refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.errors import UserError
from tests.runs import Run
from tools import export, export_runtimes
from tools.ggml_format import read_ggml
from tools.greedy_check import GreedyReference, make_reference
from tools.openai_format import openai_name, openai_tensors

TOKENS = 16


@pytest.fixture(scope="module")
def reference(trained: Run) -> Iterator[GreedyReference]:
    """What the trained model writes greedily for one recording, as Hugging Face decodes it."""
    patch = pytest.MonkeyPatch()
    patch.setattr("tools.greedy_check.MAX_NEW_TOKENS", TOKENS)
    patch.setattr("tools.export_runtimes.MAX_NEW_TOKENS", TOKENS)
    yield make_reference(*export.load(str(trained.output_dir)), export.default_samples()[:1])
    patch.undo()


def run_export(monkeypatch: pytest.MonkeyPatch, trained: Run, output: Path, *flags: str) -> None:
    monkeypatch.setattr("tools.export.default_samples", lambda: [str(export.DIGITS / "0000.ogg")])
    command = ["export", "--model", str(trained.output_dir), "--output", str(output), *flags]
    monkeypatch.setattr(sys, "argv", command)
    export.main()


def test_faster_whisper_writes_what_hugging_face_writes(trained, reference, tmp_path, monkeypatch, capsys):
    from faster_whisper import WhisperModel

    run_export(monkeypatch, trained, tmp_path / "ct2", "--to", "ct2")
    assert "done" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["ct2"]
    waveform, _ = soundfile.read(reference.samples[0], dtype="float32")
    window = np.pad(waveform, (0, 30 * 16000 - len(waveform)))  # it pads the log-mel with 0 where others pad the audio
    # Not by `transcribe`, whose prompt is that of an English-only model for every vocabulary below OpenAI's size.
    whisper = WhisperModel(str(tmp_path / "ct2"), device="cpu")
    heard = whisper.encode(whisper.feature_extractor(window)[:, :3000])
    answer = whisper.model.generate(
        heard, [reference.prompt], beam_size=1, max_length=2 * TOKENS, suppress_tokens=reference.suppressed
    )
    assert answer[0].sequences_ids[0] == reference.tokens[0]


def test_openai_whisper_loads_it_and_gives_the_same_logits(trained, reference, tmp_path, monkeypatch):
    import whisper

    run_export(monkeypatch, trained, tmp_path / "openai", "--to", "openai")
    loaded = whisper.load_model(str(tmp_path / "openai" / export_runtimes.PT_FILE), device="cpu")
    tokens = torch.tensor([reference.prompt + reference.tokens[0][:3]])
    with torch.inference_mode():
        ours = reference.model(reference.features, decoder_input_ids=tokens).logits
        theirs = loaded(reference.features, tokens)
    assert torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
def test_the_file_of_whisper_cpp_holds_the_models_tensors(reference, tmp_path, half):
    quantization = "float16" if half else "float32"
    exporter = export_runtimes.EXPORTERS["ggml"]
    export.write(exporter, reference.model, reference.processor, tmp_path / "ggml", quantization)
    with (tmp_path / "ggml" / export_runtimes.GGML_FILE).open("rb") as file:
        dimensions, filters, vocabulary, tensors = read_ggml(file)
    expected = openai_tensors(reference.model)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.allclose(tensors[name], tensor, rtol=1e-3 if half else 0, atol=1e-7 if half else 0), name
    assert tensors["decoder.token_embedding.weight"].dtype == (np.float16 if half else np.float32)
    assert dimensions["n_audio_ctx"] == 1500
    text = reference.processor.tokenizer("six four", add_special_tokens=False).input_ids
    assert b"".join(vocabulary[token] for token in text) == b"six four"
    from whisper.audio import mel_filters

    assert np.allclose(filters, mel_filters("cpu", 80), atol=1e-6)


def test_a_ggml_file_that_is_cut_off_or_another_is_refused():
    with pytest.raises(ValueError, match="too early"):
        read_ggml(io.BytesIO(b"lmgg"))
    with pytest.raises(ValueError, match="it begins with"):
        read_ggml(io.BytesIO(bytes(64)))


def test_every_tensor_has_openais_name():
    assert openai_name("model.encoder.embed_positions.weight") == "encoder.positional_embedding"
    assert openai_name("model.encoder.layers.3.fc2.bias") == "encoder.blocks.3.mlp.2.bias"
    assert openai_name("model.decoder.layers.0.encoder_attn.q_proj.bias") == "decoder.blocks.0.cross_attn.query.bias"
    assert openai_name("model.decoder.layer_norm.bias") == "decoder.ln.bias"


def test_an_export_that_writes_something_else_is_not_kept(trained, reference, tmp_path, monkeypatch):
    other = export_runtimes.Exporter(
        "another runtime", ("float32",), lambda *_: None, lambda reference, _: [[7] for _ in reference.samples], ""
    )
    monkeypatch.setitem(export.EXPORTERS, "openai", other)
    with pytest.raises(UserError, match=r"1 of 1 samples come out differently.*not kept"):
        run_export(monkeypatch, trained, tmp_path / "openai", "--to", "openai")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "onnx"], "needs optimum-onnx"),
        (["--to", "ggml", "--quantization", "int8"], "expected float32 or float16"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(trained, tmp_path, monkeypatch, flags, message):
    with pytest.raises(UserError, match=message):
        run_export(monkeypatch, trained, tmp_path / "x", *flags)


def test_a_model_with_another_window_than_30_s_is_refused(tiny_checkpoint):
    with pytest.raises(UserError, match=r"window of 4 s.*tools.transcribe"):
        export.load(str(tiny_checkpoint))
