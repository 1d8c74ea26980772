"""The example corpus and the tiny checkpoint: complete, loadable, reproducible."""

import csv
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import (  # type: ignore[attr-defined]
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    WhisperTokenizerFast,
    pipeline,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from common.errors import UserError
from examples.make_digits import EVAL, TRAIN, choose_utterances
from examples.make_noise import make_noise
from examples.make_tiny_checkpoint import make_tiny_checkpoint

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DIGITS = EXAMPLES / "digits"
BENGALI = "আমি বাংলায় গান গাই, আমি বাংলার গান গাই"


def rows_of(part: str) -> list[dict[str, str]]:
    with (DIGITS / part / "metadata.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bengali_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bengali")
    (folder / "train.tsv").write_text(f"path\tsentence\na.wav\t{BENGALI}\nb.wav\t{BENGALI}\n", encoding="utf-8")
    return make_tiny_checkpoint(folder / "train.tsv", folder / "tiny", chunk_length=2, num_mel_bins=128)


@pytest.mark.parametrize("part", ["train", "eval"])
def test_every_digits_recording_decodes_to_the_duration_in_its_row(part: str) -> None:
    for row in rows_of(part):
        waveform, rate_hz = soundfile.read(DIGITS / part / row["file_name"], dtype="float32", always_2d=True)
        assert (rate_hz, waveform.shape[1]) == (16000, 1)
        assert len(waveform) / rate_hz == pytest.approx(float(row["duration"]), abs=0.001)
        assert 0.3 < len(waveform) / rate_hz < 3.0
        assert 0.3 < np.abs(waveform).max() <= 1.0
        assert 1 <= len(row["text"].split()) <= 5


def test_the_digits_folders_hold_only_what_their_manifests_list_and_stay_small() -> None:
    for part in ("train", "eval"):
        names = {path.name for path in (DIGITS / part).iterdir()}
        assert names == {row["file_name"] for row in rows_of(part)} | {"metadata.csv"}
    assert sum(path.stat().st_size for path in DIGITS.rglob("*") if path.is_file()) <= 4_000_000


def test_train_and_eval_share_no_recording_no_string_of_digits_and_no_setting_of_the_synthesiser() -> None:
    train, evaluation = rows_of("train"), rows_of("eval")
    ids = [row["id"] for row in train + evaluation]
    assert len(set(ids)) == len(ids)
    texts = [{row["text"] for row in rows if " " in row["text"]} for rows in (train, evaluation)]
    assert texts[0].isdisjoint(texts[1])
    for setting in (1, 2):  # speed, pitch
        values = [{row["id"].split("_")[setting] for row in rows} for rows in (train, evaluation)]
        assert values[0].isdisjoint(values[1])


def test_the_same_seed_chooses_the_same_utterances() -> None:
    chosen = [choose_utterances(part, 30, random.Random(3), set()) for part in (TRAIN, TRAIN, EVAL)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 30
    assert not set(chosen[0]) & set(chosen[2])


def test_the_digits_script_says_how_to_get_espeak_when_it_is_missing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(EXAMPLES / "make_digits.py"),
        "--output",
        str(tmp_path / "x"),
        "--espeak",
        "no-espeak",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no-espeak was not found: install it")
    assert not (tmp_path / "x").exists()


def test_the_same_seed_makes_the_same_noise_and_it_sounds_all_the_time(tmp_path: Path) -> None:
    first, second = (make_noise(tmp_path / name, DIGITS / "eval", seed=1) for name in ("a", "b"))
    for path, twin in zip(first, second, strict=True):
        noise, rate_hz = soundfile.read(path)
        assert rate_hz == 16000
        np.testing.assert_array_equal(noise, soundfile.read(twin)[0])
        seconds = noise.reshape(10, rate_hz)
        assert (np.sqrt(np.mean(seconds**2, axis=1)) > 0.003).all(), path.name


def test_the_checkpoint_loads_as_model_processor_and_tokenizer_that_fit_each_other(checkpoint: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    processor = WhisperProcessor.from_pretrained(checkpoint)
    tokenizer = WhisperTokenizerFast.from_pretrained(checkpoint)
    assert 0.5e6 < model.num_parameters() < 2e6
    assert model.config.vocab_size == len(tokenizer) == len(processor.tokenizer)
    assert model.config.num_mel_bins == processor.feature_extractor.feature_size == 80
    assert processor.feature_extractor.n_samples == 4 * 16000
    assert processor.feature_extractor.nb_max_frames == 2 * model.config.max_source_positions
    assert model.config.max_target_positions == model.generation_config.max_length == 448


def test_the_special_tokens_are_whispers_in_whispers_order(checkpoint: Path) -> None:
    tokenizer = WhisperTokenizer.from_pretrained(checkpoint)
    languages = [f"<|{code}|>" for code in LANGUAGES]
    expected = ["<|endoftext|>", "<|startoftranscript|>", *languages, "<|translate|>", "<|transcribe|>"]
    expected += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.convert_ids_to_tokens(range(first, first + len(expected))) == expected
    assert sorted(tokenizer.all_special_ids) == list(range(first, first + len(expected)))
    timestamps = tokenizer.convert_ids_to_tokens(range(first + len(expected), len(tokenizer)))
    assert len(timestamps) == 1501
    assert (timestamps[0], timestamps[1], timestamps[-1]) == ("<|0.00|>", "<|0.02|>", "<|30.00|>")


def test_labels_begin_with_language_and_task_and_decode_to_the_transcript(checkpoint: Path) -> None:
    tokenizer = WhisperTokenizerFast.from_pretrained(checkpoint, language="Bengali", task="transcribe")
    for text in ("three one four", BENGALI, "Grüße, 世界! 🙂"):
        labels = tokenizer(text).input_ids
        assert tokenizer.convert_ids_to_tokens(labels)[:4] == [
            "<|startoftranscript|>",
            "<|bn|>",
            "<|transcribe|>",
            "<|notimestamps|>",
        ]
        assert tokenizer.convert_ids_to_tokens(labels)[-1] == "<|endoftext|>"
        assert tokenizer.decode(labels, skip_special_tokens=True) == text
    assert len(tokenizer("three one four", add_special_tokens=False).input_ids) == 3, "a token per digit"


def test_a_bengali_manifest_gives_a_tokenizer_that_writes_bengali_in_few_tokens(bengali_checkpoint: Path) -> None:
    tokenizer = WhisperTokenizer.from_pretrained(bengali_checkpoint)
    ids = tokenizer(BENGALI, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == BENGALI
    assert len(ids) < len(BENGALI)
    model = WhisperForConditionalGeneration.from_pretrained(bengali_checkpoint)
    assert (model.config.num_mel_bins, model.config.max_source_positions) == (128, 100)


def test_the_same_arguments_give_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first, second = (digests(make_tiny_checkpoint(DIGITS / "eval", tmp_path / name)) for name in ("a", "b"))
    other = digests(make_tiny_checkpoint(DIGITS / "eval", tmp_path / "c", seed=1))
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random state is left alone"


def test_generate_and_the_recognition_pipeline_run_with_the_language_given(checkpoint: Path) -> None:
    waveform, rate_hz = soundfile.read(DIGITS / "eval" / rows_of("eval")[0]["file_name"], dtype="float32")
    processor = WhisperProcessor.from_pretrained(checkpoint)
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    features = processor(waveform, sampling_rate=rate_hz, return_tensors="pt").input_features
    tokens = model.generate(features, language="english", task="transcribe", max_length=12)
    assert tokens.shape[0] == 1
    assert 0 <= tokens.min() <= tokens.max() < model.config.vocab_size
    recognizer = pipeline("automatic-speech-recognition", model=str(checkpoint))
    result: Any = recognizer({"raw": waveform, "sampling_rate": rate_hz}, generate_kwargs={"max_new_tokens": 8})
    assert isinstance(result["text"], str)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the manifest"),
        ("file_name,words\na.ogg,one\n", "no column with transcripts: expected text, transcription, sentence, found"),
        ("file_name,text\na.ogg,\n", "every transcript in column text"),
    ],
)
def test_a_manifest_without_transcripts_is_refused_in_one_line(
    tmp_path: Path, content: str | None, message: str
) -> None:
    manifest = tmp_path / "m.csv"
    if content is not None:
        manifest.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        make_tiny_checkpoint(manifest, tmp_path / "tiny")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(("option", "value"), [("chunk_length", 31), ("num_mel_bins", 0)])
def test_a_model_that_no_whisper_could_be_is_refused(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(UserError, match=f"--{option} is {value}: expected"):
        make_tiny_checkpoint(DIGITS / "eval", tmp_path / "tiny", **{option: value})


def test_the_checkpoint_script_makes_what_its_flags_say(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "make_tiny_checkpoint.py"), "--manifest", str(DIGITS / "eval")]
    command += ["--output", str(tmp_path / "tiny"), "--chunk_length", "3", "--num_mel_bins", "128"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    extractor = json.loads((tmp_path / "tiny" / "preprocessor_config.json").read_text(encoding="utf-8"))
    config = json.loads((tmp_path / "tiny" / "config.json").read_text(encoding="utf-8"))
    assert (extractor["chunk_length"], extractor["feature_size"]) == (3, 128)
    assert (config["max_source_positions"], config["num_mel_bins"]) == (150, 128)
