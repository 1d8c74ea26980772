"""A finished model has a card that the Hub reads, and is pushed whole or not at all."""

from __future__ import annotations

import types
from typing import ClassVar

import pytest
from huggingface_hub import ModelCard
from transformers import Seq2SeqTrainingArguments

from common.errors import UserError
from training.hub_upload import upload_model


@pytest.fixture(scope="module")
def card(trained) -> ModelCard:
    return ModelCard.load(trained.output_dir / "README.md")


def test_its_metadata_are_what_the_hub_asks_for(card, trained):
    assert card.data.language == "en"
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert card.data.library_name == "transformers"
    results = {(result.metric_type, result.metric_name): result.metric_value for result in card.data.eval_results}
    assert results.keys() == {("wer", "WER"), ("cer", "CER"), ("wer", "WER normalised"), ("cer", "CER normalised")}
    assert "model-index" in card.data.to_dict()


def test_it_says_what_the_model_was_trained_on_how_and_how_to_use_it(card, trained):
    for title in ("How to use", "Results", "Training data", "Augmentation", "Hyper-parameters", "Limits", "Versions"):
        assert f"\n## {title}\n" in card.text
    assert "- samples trained: 8" in card.text
    assert "- far_field_effect_prob: 0.0" in card.text
    assert "- learning_rate: 0.001" in card.text
    assert "- transformers: 5." in card.text
    assert str(trained.folder) not in card.content  # no folders of this machine


class Hub:
    """What of the Hub's client is used, with a record of what was asked for."""

    calls: ClassVar[list[tuple[str, dict]]] = []

    def __init__(self, **_: object) -> None:
        Hub.calls.clear()

    def create_repo(self, name, **arguments):
        Hub.calls.append(("repo", {"name": name, **arguments}))
        return types.SimpleNamespace(repo_id=f"me/{name}")

    def create_branch(self, name, **arguments):
        Hub.calls.append(("branch", {"name": name, **arguments}))

    def upload_folder(self, **arguments):
        Hub.calls.append(("upload", arguments))
        return types.SimpleNamespace(commit_url="https://hub/me/x/commit/1")


def test_a_push_is_one_commit_of_the_model_without_checkpoints(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    arguments = Seq2SeqTrainingArguments(output_dir=str(tmp_path), hub_model_id="x", hub_revision="v2")
    assert upload_model(trained.output_dir, arguments) == "https://hub/me/x/commit/1"
    assert [name for name, _ in Hub.calls] == ["repo", "branch", "upload"]
    upload = Hub.calls[-1][1]
    assert upload["revision"] == "v2"
    assert "checkpoint-*" in upload["ignore_patterns"]


def test_a_hub_that_is_out_of_reach_is_told_in_one_line(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("cannot reach\nthe Hub")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(UserError, match=r"cannot push to the Hub.*complete in") as caught:
        upload_model(tmp_path, Seq2SeqTrainingArguments(output_dir=str(tmp_path), hub_model_id="x"))
    assert "\n" not in str(caught.value)
