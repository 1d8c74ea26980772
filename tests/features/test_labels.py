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
from features.labels import LanguageError, TranscriptEncoder, load_transcript_encoder
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


def plain_labels(folder: Path, transcript: str, language: str | None, task: str | None) -> list[int]:
    """Labels as Hugging Face's tokenizer makes them when it is set to one language and task."""
    tokenizer = WhisperTokenizer.from_pretrained(folder, language=language, task=task, predict_timestamps=False)
    return tokenizer(transcript).input_ids


@pytest.mark.parametrize("run", ["English", ""])
@pytest.mark.parametrize(
    ("language", "task"),
    [("Bengali", ""), ("bn", "translate"), ("NO", "transcribe"), ("haitian creole", ""), ("burmese", "translate")],
)
def test_a_recording_of_its_own_language_and_task_has_the_labels_that_hugging_face_gives_it(
    tiny_checkpoint, run, language, task
):
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language=run))
    encoder = pickle.loads(pickle.dumps(encoder))
    for text in ("one two", "", "এক দুই", " Ünï  code "):
        expected = plain_labels(tiny_checkpoint, text, language.lower(), task or "transcribe")
        assert encoder.encode(text, language, task).tolist() == expected
        of_the_run = plain_labels(tiny_checkpoint, text, run.lower() or None, "transcribe" if run else None)
        assert encoder.encode(text).tolist() == of_the_run
    assert not encoder.is_too_long("zq" * 10, language, task)
    assert encoder.is_too_long("zqx " * 500, language, task)


def test_a_task_alone_goes_with_the_language_of_the_run(tiny_checkpoint, encoder):
    expected = plain_labels(tiny_checkpoint, "one", "english", "translate")
    assert encoder.encode("one", "", "translate").tolist() == expected
    assert encoder.encode("one", "", "transcribe").tolist() == encoder.encode("one").tolist()
    alone = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language=""))
    assert alone.prompt_of("", "transcribe") == alone.prompt
    with pytest.raises(LanguageError, match="unknown task 'translate': it needs a language"):
        alone.encode("one", "", "translate")


def test_a_language_of_a_recording_that_the_model_has_no_token_for_is_named(tiny_checkpoint, tmp_path, encoder, folder):
    with pytest.raises(LanguageError, match="unknown language 'Klingon'"):
        encoder.encode("one", "Klingon")
    older = load_transcript_encoder(
        ModelConfig(model_name=str(ModelFolders(tiny_checkpoint, tmp_path)("noyue")), language="English")
    )
    with pytest.raises(LanguageError, match="unknown language 'Cantonese'"):
        older.encode("one", "Cantonese")
    edit_json(folder / "generation_config.json", is_multilingual=False)
    english_only = load_transcript_encoder(ModelConfig(model_name=str(folder), language=""))
    assert english_only.encode("one", "en").tolist() == english_only.encode("one").tolist()
    with pytest.raises(LanguageError, match="unknown language 'bn'"):
        english_only.encode("one", "bn")


def test_encoders_that_give_recordings_of_a_language_another_task_have_other_digests(tiny_checkpoint):
    digests = {
        load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language=language, task=task)).digest
        for language in ("English", "")
        for task in ("transcribe", "translate")
    }
    assert len(digests) == 4
