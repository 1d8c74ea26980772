"""A saved folder has what every Whisper runtime looks for, in the output folder and in each checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from transformers import WhisperProcessor, WhisperTokenizer

from audio.waveform import load_waveform
from config import DataConfig
from features.feature_spec import load_feature_spec
from tests.runs import DIGITS, Run
from training.checkpoints import MARKER
from training.saved_folder import ADDED_FILES, complete_saved_folder


@pytest.fixture(params=[".", "checkpoint-2", "checkpoint-4"])
def saved(trained: Run, request: pytest.FixtureRequest) -> Path:
    """The output folder of a run, and its checkpoints."""
    return trained.output_dir / request.param


def settings(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_it_holds_the_files_that_converters_and_older_versions_ask_for(saved):
    assert [name for name in ADDED_FILES if not (saved / name).is_file()] == []
    assert settings(saved, "preprocessor_config.json")["feature_size"] == 80
    vocabulary, added = settings(saved, "vocab.json"), settings(saved, "added_tokens.json")
    assert sorted([*vocabulary.values(), *added.values()]) == list(range(settings(saved, "config.json")["vocab_size"]))
    assert added["<|startoftranscript|>"] == settings(saved, "generation_config.json")["decoder_start_token_id"]


def test_its_tokenizer_config_is_one_that_transformers_4_reads(saved):
    config = settings(saved, "tokenizer_config.json")
    assert not isinstance(config.get("extra_special_tokens"), list)  # transformers 4 asks for its keys
    assert "<|startoftranscript|>" in config["additional_special_tokens"]
    assert {token["content"] for token in config["added_tokens_decoder"].values()} >= {"<|notimestamps|>", "<|30.00|>"}


def test_its_tokenizer_is_the_one_of_before(trained, saved):
    before = WhisperTokenizer.from_pretrained(trained.settings["model.model_name"])
    after = WhisperTokenizer.from_pretrained(saved)
    for text in ("six four", "তোমার নাম কী", "<|0.20|> é"):
        assert after(text, add_special_tokens=False) == before(text, add_special_tokens=False)
    assert after.all_special_ids == before.all_special_ids


def test_it_generates_in_the_language_trained_and_names_no_setting_twice(saved):
    assert "forced_decoder_ids" not in settings(saved, "config.json")
    generation = settings(saved, "generation_config.json")
    assert generation["language"] == "english"
    assert not generation.keys() & {"dropout", "_from_model_config"}


def test_a_pipeline_transcribes_with_a_checkpoint(trained):
    checkpoint = str(trained.output_dir / "checkpoint-2")
    recognizer = transformers.pipeline("automatic-speech-recognition", model=checkpoint)
    waveform = load_waveform(DIGITS / "eval" / "0000.ogg", load_feature_spec(checkpoint), DataConfig())
    assert isinstance(recognizer(waveform, generate_kwargs={"max_new_tokens": 8})["text"], str)


def test_a_checkpoint_is_complete_before_it_is_marked(trained):
    for checkpoint in trained.output_dir.glob("checkpoint-*"):
        marked = (checkpoint / MARKER).stat().st_mtime_ns
        assert all((checkpoint / name).stat().st_mtime_ns <= marked for name in ADDED_FILES)


def test_completing_a_folder_twice_changes_nothing(trained):
    folder = trained.output_dir / "checkpoint-2"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    complete_saved_folder(folder, WhisperProcessor.from_pretrained(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
