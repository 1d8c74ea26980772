"""What the error rates count, and what they leave alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import EvalPrediction, WhisperTokenizer

from training.metrics import CharacterErrorRate, TranscriptionMetrics, WordErrorRate, error_rates, normalize


def test_word_error_rate_counts_over_the_whole_corpus():
    references = ["one two three four five six seven eight", "nine"]
    hypotheses = ["one two three four five six seven eight", "ten"]
    assert WordErrorRate().compute(predictions=hypotheses, references=references) == pytest.approx(1 / 9)


def test_character_error_rate_counts_substitutions_deletions_and_insertions():
    # abcd → axcd: one substitution; ef → e: one deletion; g → gh: one insertion; seven reference characters
    rate = CharacterErrorRate().compute(predictions=["axcd", "e", "gh"], references=["abcd", "ef", "g"])
    assert rate == pytest.approx(3 / 7)


def test_a_perfect_hypothesis_has_no_errors():
    assert set(error_rates(["one two"], ["one two"]).values()) == {0.0}


def test_words_written_for_an_empty_reference_are_insertions():
    assert WordErrorRate().compute(predictions=["one two", "three"], references=["one two", ""]) == pytest.approx(1 / 2)


@pytest.mark.parametrize(("hypothesis", "rate"), [("", 0.0), ("two words", 2.0)])
def test_a_corpus_without_any_reference_word_is_scored_by_its_insertions(hypothesis, rate):
    assert WordErrorRate().compute(predictions=[hypothesis], references=[""]) == rate


def test_an_empty_hypothesis_misses_every_word():
    assert error_rates(["one two three"], [""])["wer"] == 1.0


def test_a_reference_of_punctuation_only_is_empty_once_normalised():
    rates = error_rates(["...", "one"], ["", "one"])
    assert rates["wer"] == 0.5
    assert rates["wer_normalized"] == 0.0


def test_normalising_forgives_case_punctuation_and_spacing_but_the_raw_rates_do_not():
    rates = error_rates(["Twenty-one,  don’t!"], ["twenty one dont"])
    assert rates["wer_normalized"] == 0.0
    assert rates["cer_normalized"] == 0.0
    assert rates["wer"] > 0.5
    assert rates["cer"] > 0.1


def test_four_bengali_words_stay_four():
    text = "আমি বাংলায় গান গাই।"
    assert len(normalize(text).split()) == 4
    assert "\u09be" in normalize(text)  # a vowel sign, category Mc


def test_invisible_characters_make_no_difference():
    assert normalize("ক\u200cখ") == normalize("কখ")
    assert normalize("one\u200btwo") == "one two"
    assert normalize("\ufeffone") == "one"


def test_normalising_twice_changes_nothing_more():
    for text in ["İstanbul", "ﬁve ½", "Ünïcode Ⅷ", "", "  ", "´ˋ"]:
        assert normalize(normalize(text)) == normalize(text)


def test_a_different_number_of_texts_is_refused():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        error_rates(["one", "two"], ["one"])


def test_tokens_are_decoded_without_padding_and_special_tokens(tiny_checkpoint):
    tokenizer = WhisperTokenizer.from_pretrained(tiny_checkpoint, language="english", task="transcribe")
    labels = np.array(tokenizer(["one two", "three"], padding=True).input_ids)
    labels[labels == tokenizer.pad_token_id] = -100
    predictions = np.array(tokenizer(["one two", "four"], padding=True).input_ids)
    metrics = TranscriptionMetrics(tokenizer)
    rates = metrics(EvalPrediction(predictions=predictions, label_ids=labels))
    assert rates["wer"] == pytest.approx(1 / 3)
    assert metrics.examples == [("one two", "one two"), ("three", "four")]


def test_the_metrics_need_no_network_and_write_nothing(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from training.metrics import error_rates\n"
        "assert error_rates(['one'], ['two'])['wer'] == 1.0\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment | {"HOME": str(home), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        timeout=120,
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not written
