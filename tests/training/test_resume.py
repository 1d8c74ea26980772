"""A resumed run takes weights and moments from its checkpoint, and all settings from the configuration."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
import torch

from tests.models import edit_json
from tests.training_runs import (
    lines_in_record,
    output_dir,
    train,
    trained_positions,
    wait_until,
)
from training.batches import EvaluationError
from training.resume import ChangedSettingError

pytestmark = pytest.mark.usefixtures("one_thread")

CONSTANT = {"lr_scheduler_type": "constant", "learning_rate": 1e-3}


def first_rate(trainer, step: int) -> float:
    """The learning rate of the first step behind a checkpoint."""
    return next(entry["learning_rate"] for entry in trainer.state.log_history if entry["step"] == step + 1)


@pytest.fixture
def trained_two_steps(make_config, produce):
    """Trains two steps and leaves checkpoint-2, to be resumed in another namespace: `trained_two_steps(**settings)`."""

    def run(**model):
        config = make_config(namespace="first", **{"max_steps": 2, **model})
        produce(config, 20).leave()
        train(config)
        resumed = make_config(**model)
        produce(resumed, 20)
        return resumed

    return run


def test_changed_rate_and_weight_decay_hold_from_the_first_resumed_step(make_config, trained_two_steps):
    trained_two_steps(**CONSTANT)
    trainer, _ = train(make_config(lr_scheduler_type="constant", learning_rate=5e-5, weight_decay=0.1))
    assert first_rate(trainer, 2) == pytest.approx(5e-5)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert trainer.optimizer.param_groups[1]["weight_decay"] == 0.0  # biases and norms
    assert trained_positions(make_config()) == list(range(20))


def test_the_schedule_is_that_of_the_new_number_of_steps(make_config, trained_two_steps):
    trained_two_steps(lr_scheduler_type="linear")
    trainer, _ = train(make_config(lr_scheduler_type="linear"))
    assert trainer.state.max_steps == 10
    assert first_rate(trainer, 2) == pytest.approx(1e-3 * (10 - 2) / 10)  # logged is the rate that step 3 used


def test_another_schedule_goes_on_at_its_own_step(make_config, trained_two_steps):
    trained_two_steps(**CONSTANT)
    trainer, _ = train(make_config(lr_scheduler_type="cosine"))
    factor = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 10)))
    assert first_rate(trainer, 2) == pytest.approx(1e-3 * float(factor), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze_feature_encoder": True}, r"model.freeze_feature_encoder was changed.*optimizer.pt to start"),
        ({"trainer_arguments": {"optim": "adafactor"}}, r"optim\) is adafactor.*optimizer.pt to start"),
    ],
)
def test_what_the_optimizers_state_cannot_follow_is_refused_and_the_way_out_works(
    make_config, trained_two_steps, change, message, caplog
):
    trained_two_steps(**CONSTANT)
    changed = make_config(**CONSTANT, **change)
    with pytest.raises(ChangedSettingError, match=message) as caught:
        train(changed)
    assert "\n" not in str(caught.value)
    (output_dir(changed) / "checkpoint-2" / "optimizer.pt").unlink()
    trainer, _ = train(changed)
    assert "the optimizer starts anew" in caplog.text
    assert trained_positions(changed) == list(range(20))
    assert first_rate(trainer, 2) == pytest.approx(1e-3)


def test_a_model_of_other_shapes_is_refused(make_config, trained_two_steps):
    config = trained_two_steps(**CONSTANT)
    edit_json(output_dir(config) / "checkpoint-2" / "config.json", decoder_layers=4)
    with pytest.raises(ChangedSettingError, match=r"with decoder_layers 4, model.model_name has 2"):
        train(config)


def test_a_scaler_of_float16_does_not_hinder_a_run_without(trained_two_steps):
    config = trained_two_steps(**CONSTANT)
    torch.save({"scale": 1.0}, output_dir(config) / "checkpoint-2" / "scaler.pt")
    train(config)
    assert trained_positions(config) == list(range(20))


@pytest.mark.parametrize("knows_metric", [True, False])
def test_another_metric_drops_the_best_model_and_the_patience(
    make_config, produce, eval_manifest, caplog, knows_metric
):
    """`knows_metric` False: a checkpoint of an earlier version, which does not say by what the best was found."""
    settings = {"eval_manifest": eval_manifest, "eval_steps": 1, "save_steps": 1, "early_stopping_patience": 2}
    first = make_config(**settings, metric_for_best_model="cer", learning_rate=1e-12)
    produce(first, 20)
    trainer, _ = train(first)
    assert trainer.state.global_step == 3  # stopped early: CER does not change
    newest = output_dir(first) / "checkpoint-3" / "trainer_state.json"
    state = json.loads(newest.read_text())
    assert state["best_metric"] is not None
    if not knows_metric:
        for name in ("judged_by", "learning_rate"):
            del state["stateful_callbacks"]["Progress"]["attributes"][name]
        newest.write_text(json.dumps(state))
    second = make_config(**settings, namespace="again", metric_for_best_model="loss", learning_rate=1e-3, max_steps=5)
    produce(second, 20)
    with caplog.at_level(logging.INFO):
        trainer, _ = train(second)
    assert "the best model so far (step 1) no longer counts" in caplog.text
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e and e["step"] > 3}
    assert trainer.state.global_step == 5
    assert trainer.state.best_metric == min(losses.values())
    assert trainer.model_step == min(losses, key=lambda step: losses[step])


def test_the_loss_of_an_evaluation_does_not_depend_on_the_batches(make_config, produce, eval_manifest, tmp_path):
    losses = []
    for size in (1, 4, 6):
        name = f"batches{size}"
        config = make_config(
            namespace=name, output_dir=str(tmp_path / name), eval_manifest=eval_manifest, max_steps=1,
            per_device_eval_batch_size=size, learning_rate=1e-12, metric_for_best_model="loss",
            predict_with_generate=size != 4,
        )  # fmt: skip
        produce(config, 4).leave()
        train(config)
        state = json.loads((output_dir(config) / "trainer_state.json").read_text())
        losses.append(next(entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)


def test_the_model_is_saved_before_the_closing_evaluation_can_fail(make_config, produce, eval_manifest):
    config = make_config(eval_manifest=eval_manifest, max_steps=3, save_steps=100, early_stopping_patience=0)
    producer = produce(config, 8, available=5)

    def remove_recordings() -> None:
        wait_until(lambda: lines_in_record(config) >= 1)  # the scan has found them usable
        for recording in Path(eval_manifest).parent.glob("*.ogg"):
            recording.unlink()
        producer.available = 8

    remover = threading.Thread(target=remove_recordings, daemon=True)
    remover.start()
    with pytest.raises(EvaluationError, match="can no longer be read"):
        train(config)
    remover.join()
    assert (output_dir(config) / "model.safetensors").is_file()
    assert producer.is_alive()  # the run is not finished: started again, it evaluates
