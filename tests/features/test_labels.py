"""Labels begin as `generate` does, and a model folder that cannot be used is refused before a sample is made."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from transformers import WhisperTokenizer

from common.errors import UserError
from config import ModelConfig
from features.feature_spec import ModelFilesError, load_feature_spec
from features.labels import TranscriptEncoder, load_transcript_encoder
from tests.models import ModelFolders, edit_json


@pytest.fixture
def encoder(tiny_checkpoint: Path) -> TranscriptEncoder:
    return load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to be spoilt."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.mark.parametrize(
    ("transcript", "token"),
    [
        ("one <|nospeech|> two", "<|nospeech|>"),
        ("<|0.00|> one <|2.00|>", "<|0.00|>"),
        ("one<|endoftext|>", "<|endoftext|>"),
        ("<|en|><|bn|>", "<|en|>"),
        ("one two", None),
        ("1 <| 2 |> 3, <|EN|>, <en>, <|0.01|>, <|en |>", None),
        ("", None),
    ],
)
def test_a_special_token_in_a_transcript_is_found(encoder, transcript, token):
    assert encoder.special_token_in(transcript) == token
    labels = encoder.encode(transcript).tolist()
    end = labels[-1]
    specials = [label for label in labels[len(encoder.prompt) : -1] if label >= end]
    assert bool(specials) == (token is not None)


def test_the_encoder_survives_pickling(encoder):
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy.special_token_in("a <|3.00|>") == "<|3.00|>"
    assert copy.encode("one").tolist() == encoder.encode("one").tolist()
    assert copy.digest == encoder.digest


def test_words_that_were_added_to_the_vocabulary_are_text(folder):
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["six four"])
    tokenizer.save_pretrained(folder)
    edit_json(folder / "config.json", vocab_size=len(tokenizer))
    encoder = load_transcript_encoder(ModelConfig(model_name=str(folder), language="English"))
    assert encoder.special_token_in("six four") is None
    assert len(encoder.encode("six four")) == len(encoder.prompt) + 2


def test_what_an_earlier_training_saved_with_the_tokenizer_does_not_count(folder):
    WhisperTokenizer.from_pretrained(folder, language="bengali", task="translate").save_pretrained(folder)
    encoder = load_transcript_encoder(ModelConfig(model_name=str(folder), language=""))
    assert len(encoder.prompt) == 2  # start and no timestamps


@pytest.mark.parametrize(
    ("language", "message"),
    [("Klingon", "which Whisper does not know.*take a related language"), ("xx", "which Whisper does not know")],
)
def test_a_language_that_whisper_does_not_know_is_refused_with_a_way_out(tiny_checkpoint, language, message):
    with pytest.raises(UserError, match=message):
        load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language=language))


def test_a_language_that_the_model_has_no_token_for_is_refused(tiny_checkpoint, tmp_path):
    folder = ModelFolders(tiny_checkpoint, tmp_path)("noyue")
    load_transcript_encoder(ModelConfig(model_name=str(folder), language="English"))
    with pytest.raises(UserError, match=r"has no token <\|yue\|>"):
        load_transcript_encoder(ModelConfig(model_name=str(folder), language="Cantonese"))


def test_an_english_only_model_takes_no_language(folder):
    edit_json(folder / "generation_config.json", is_multilingual=False)
    with pytest.raises(UserError, match=r'English-only model: set --model.language ""'):
        load_transcript_encoder(ModelConfig(model_name=str(folder), language="English"))
    assert len(load_transcript_encoder(ModelConfig(model_name=str(folder), language="")).prompt) == 2


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_numbers(folder):
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["six four", "zero three"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelFilesError, match=rf"has {rows + 2} tokens, the model {rows}: .*resize_token_embeddings"):
        load_transcript_encoder(ModelConfig(model_name=str(folder), language="English"))


def test_a_folder_without_tokenizer_files_is_refused_with_their_names(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json, or vocab\.json and merges\.txt"):
        load_transcript_encoder(ModelConfig(model_name=str(folder), language="English"))


def test_a_tokenizer_of_another_model_is_refused(folder):
    edit_json(folder / "config.json", decoder_start_token_id=7)
    with pytest.raises(ModelFilesError, match=r"the model starts with 7 \(decoder_start_token_id\)"):
        load_transcript_encoder(ModelConfig(model_name=str(folder), language="English"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_mel_bins": 128}, "gives 80 mel bins, its config.json 128"), ({"max_source_positions": 1500}, "3000")],
)
def test_features_that_the_model_does_not_take_are_refused_before_a_sample_is_made(folder, settings, message):
    edit_json(folder / "config.json", **settings)
    with pytest.raises(ModelFilesError, match=message):
        load_feature_spec(str(folder))


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"model_type": "bert", "vocab_size": 100}'])
def test_a_config_that_is_no_whispers_is_told_in_one_line(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelFilesError) as caught:
        load_transcript_encoder(ModelConfig(model_name=str(folder), language="English"))
    assert "\n" not in str(caught.value)
