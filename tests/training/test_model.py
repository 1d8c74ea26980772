"""Labels and `generate` begin with the same tokens, for every kind of model folder and every language setting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from common.errors import UserError
from config import ModelConfig
from features.labels import load_transcript_encoder
from tests.models import ModelFolders
from training.model import load_model

SETTINGS = [("", "transcribe"), ("English", "transcribe"), ("bn", "translate"), ("Cantonese", "transcribe")]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolders:
    return ModelFolders(tiny_checkpoint, tmp_path_factory.mktemp("models"))


def first_tokens(model: WhisperForConditionalGeneration) -> list[int]:
    """What `generate` begins with when it is told nothing, and one token that the model writes behind it."""
    bins, frames = model.config.num_mel_bins, 2 * model.config.max_source_positions
    features = torch.zeros(1, bins, frames)
    written = model.generate(features, max_new_tokens=1, force_unique_generate_call=True)
    return written[0].tolist()[:-1]


IN_EVERY_RUN = ("hub", "en", "noyue", "added_ok")
"""Folders that differ most; the others are long versions."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.long) for name in ModelFolders.NAMES]
)
def test_labels_begin_as_generate_does(folders, name, tmp_path):
    folder, accepted = folders(name), 0
    for language, task in SETTINGS:
        config = ModelConfig(model_name=str(folder), language=language, task=task)
        try:
            encoder = load_transcript_encoder(config)
        except UserError as error:
            with pytest.raises(type(error)):
                load_model(config)
            continue
        accepted += 1
        model, processor = load_model(config)
        prompt = encoder.encode("one two").tolist()[: len(encoder.prompt)]
        assert first_tokens(model) == encoder.prompt == prompt
        assert processor.tokenizer("one two").input_ids == encoder.encode("one two").tolist()
    model.save_pretrained(tmp_path)
    assert first_tokens(WhisperForConditionalGeneration.from_pretrained(tmp_path)) == prompt
    assert accepted == {"en": 1, "old_en": 1, "noyue": 3}.get(name, 4)
