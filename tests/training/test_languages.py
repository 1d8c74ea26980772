"""Recordings of several languages: batches train as plain Hugging Face labels do, and reports name each language."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, WhisperTokenizer

from config import ModelConfig
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from features.sample import Sample
from tests.runs import PRODUCER, TRAINER, ending
from training.batches import BatchMaker
from training.languages import describe_rates, language_rates, own_prompts, rows_by_language
from training.metrics import TranscriptionMetrics
from training.model import load_model
from training.token_mean_loss import TokenMeanLoss

ROWS = [("one two", "", ""), ("এক দুই তিন", "Bengali", ""), ("three", "de", "translate"), ("four five six", "bn", "")]
CODES = [("en", "transcribe"), ("bn", "transcribe"), ("de", "translate"), ("bn", "transcribe")]


@pytest.fixture(scope="module")
def model_and_batch(tiny_checkpoint):
    """The tiny model of an English run, its tokenizer, and a batch of `ROWS`."""
    config = ModelConfig(model_name=str(tiny_checkpoint), language="English", dropout=0.0)
    model, processor = load_model(config)
    spec, encoder = load_feature_spec(str(tiny_checkpoint)), load_transcript_encoder(config)
    generator = np.random.default_rng(1)
    samples = [
        Sample(
            generator.standard_normal((spec.num_mel_bins, 100 + 40 * n)).astype(np.float32), encoder.encode(*row),
            n, str(n), -1.0, "original", 1.0, "",
        )
        for n, row in enumerate(ROWS)
    ]  # fmt: skip
    make_batch = BatchMaker(spec.window_frames, model.config.decoder_start_token_id, model.config.pad_token_id)
    return model.eval(), processor.tokenizer, make_batch(samples)


def test_a_mixed_batch_has_the_loss_and_gradients_of_labels_that_are_made_by_hand(tiny_checkpoint, model_and_batch):
    model, _, batch = model_and_batch
    by_hand = []
    for (text, _, _), (language, task) in zip(ROWS, CODES, strict=True):
        tokenizer = WhisperTokenizer.from_pretrained(tiny_checkpoint, language=language, task=task)
        by_hand.append({"input_ids": tokenizer(text).input_ids})
    padded = tokenizer.pad(by_hand, return_tensors="pt")
    labels = padded.input_ids.masked_fill(padded.attention_mask.ne(1), -100)[:, 1:]
    assert torch.equal(batch["labels"], labels)
    plain = model(input_features=batch["input_features"], labels=labels).loss
    plain.backward()
    gradient = model.model.decoder.embed_tokens.weight.grad.clone()
    model.zero_grad()
    inputs = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
    ours = TokenMeanLoss()(model(**inputs), batch["labels"])
    ours.backward()
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    assert torch.allclose(model.model.decoder.embed_tokens.weight.grad, gradient, atol=1e-6)
    model.zero_grad()


def test_generate_begins_with_the_language_and_task_of_each_recording(model_and_batch):
    model, tokenizer, batch = model_and_batch
    prompts = own_prompts(batch["labels"], tokenizer)
    assert prompts is not None
    assert tokenizer.batch_decode(prompts) == [f"<|startoftranscript|><|{a}|><|{b}|><|notimestamps|>" for a, b in CODES]
    together = model.generate(batch["input_features"], decoder_input_ids=prompts, max_length=20)
    for number, (language, task) in enumerate(CODES):
        features = batch["input_features"][number : number + 1]
        alone = model.generate(features, language=language, task=task, max_length=20)[0].tolist()
        written = together[number].tolist()
        assert written[: len(alone)] == alone
        assert set(written[len(alone) :]) <= {tokenizer.eos_token_id}


def test_the_prompt_is_left_to_the_model_when_all_recordings_have_the_language_of_the_run(model_and_batch):
    _, tokenizer, batch = model_and_batch
    assert own_prompts(batch["labels"][:1], tokenizer) is None
    without = batch["labels"][:2].clone()
    without[0, :2] = torch.tensor([tokenizer.convert_tokens_to_ids("<|notimestamps|>"), 5])
    assert own_prompts(without, tokenizer) is None


def test_error_rates_are_told_by_language_when_there_are_several(model_and_batch):
    _, tokenizer, batch = model_and_batch
    labels = batch["labels"].numpy()
    assert rows_by_language(labels, tokenizer) == {"bn": [1, 3], "de": [2], "en": [0]}
    predictions = labels.copy()
    predictions[3] = predictions[1]
    metrics = TranscriptionMetrics(tokenizer)
    rates = metrics(EvalPrediction(predictions=predictions, label_ids=labels))
    assert rates["bn_wer"] == pytest.approx(3 / 6)
    assert (rates["de_wer"], rates["en_cer"]) == (0, 0)
    told = language_rates({f"eval_{name}": value for name, value in rates.items()})
    assert list(told) == ["bn", "de", "en"]
    assert describe_rates(told).startswith("bn WER 0.5000, CER ")
    one = metrics(EvalPrediction(predictions=predictions[[1, 3]], label_ids=labels[[1, 3]]))
    assert not language_rates(one)


@pytest.mark.long
def test_a_run_over_two_corpora_names_them_in_its_reports_records_and_evaluation(make_run):
    run = make_run(recordings=12)
    mixture = run.folder / "mixture.yaml"
    entry = f"- {{manifest: {run.manifest}, name: "
    mixture.write_text(f"{entry}digits}}\n{entry}again, weight: 0.5, language: bn}}\n")
    run.settings |= {
        "data.train_manifest": mixture,
        "data.eval_manifest": mixture,
        "model.eval_steps": 9,
        "model.save_steps": 9,
    }
    with ending(run.start(PRODUCER), run.start(TRAINER)) as (producer, trainer):
        code, out, err = producer.finish()
        assert code == 0, err
        trained = trainer.finish()
    assert "24 of corpus digits\n" in out
    assert "12 of corpus again\n" in out
    code, out, err = trained
    assert code == 0, err
    assert "24 of corpus digits\n" in out
    assert "12 of corpus again\n" in out
    assert "By language: bn WER" in out
    assert "by language: bn WER" in err
    ids = [name for line in run.record.read_text().splitlines() for name in json.loads(line)["ids"]]
    assert len(ids) == 36
    assert {name.partition("/")[0] for name in ids} == {"digits", "again"}
