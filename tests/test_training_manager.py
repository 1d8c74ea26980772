"""Training from the queue: with a real server, real Whisper checkpoints and Hugging Face's own trainer."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from transformers import WhisperConfig, pipeline

from common.command_line import Interruption
from common.errors import UserError
from config import ModelConfig
from examples.make_tiny_checkpoint import make_tiny_checkpoint
from features.labels import load_transcript_encoder
from features.sample import Sample
from sample_queue.errors import CapacityError, FencedError, ProducerGoneError
from sample_queue.reader import SampleReader
from tests.runs import DIGITS
from tests.training_runs import (
    TIMEOUT_S,
    largest_difference,
    lines_in_record,
    output_dir,
    signal_when,
    start_script,
    train,
    trained_positions,
    trained_samples,
    wait_until,
    weights,
)
from training.batches import BatchMaker, PositionSampler
from training.checkpoints import MARKER
from training.report import transcription_command
from training.schedule import make_schedule
from training.stream_trainer import StreamTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


# --- what is trained, and in which order ---


@pytest.mark.parametrize("workers", [0, 2])
def test_every_position_is_trained_once_and_in_order(make_config, produce, workers):
    config = make_config(gradient_accumulation_steps=4, dataloader_num_workers=workers)
    producer = produce(config, 27)  # three steps of eight, and a last one of three
    trainer, report = train(config)
    lines = trained_samples(config)
    assert trained_positions(config) == list(range(27))
    assert [line["step"] for line in lines] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 2
    assert all(line["ids"] == [f"id{position}" for position in line["positions"]] for line in lines)
    assert all(line["loss"] > 0 for line in lines)
    assert trainer.state.global_step == 4
    assert trainer.state.epoch == pytest.approx(27 / 13)
    assert "27 samples" in report
    assert f"{27 * 2 / 3600:.2f} h" in report
    producer.join(timeout=10)
    assert not producer.is_alive()  # it was told that the run is finished


def test_max_steps_ends_a_run_before_the_plan_does(make_config, produce):
    config = make_config(max_steps=3, dataloader_num_workers=1)
    produce(config, 40, available=6)  # exactly what three steps need: nothing beyond them may be asked for
    trainer, _ = train(config)
    assert trainer.state.global_step == 3
    assert trained_positions(config) == list(range(6))


def test_ranks_take_turns_and_never_share_a_position():
    batch_size, ranks, accumulation = 3, 4, 2
    schedule = make_schedule(
        100, start_step=5, start_position=7, global_batch=batch_size * ranks * accumulation, ranks=ranks, max_steps=-1
    )
    assert (schedule.steps, schedule.stop_position) == (5 + 3, 7 + 72)  # the rest would not fill a step
    sampler = PositionSampler(schedule.start_position, schedule.stop_position)
    for rank in range(ranks):
        shard = BatchSamplerShard(BatchSampler(sampler, batch_size, drop_last=False), ranks, rank)
        starts = [batch[0] for batch in shard]
        assert starts == [7 + (k * ranks + rank) * batch_size for k in range(3 * accumulation)]
        assert all(len(batch) == batch_size for batch in shard)


@pytest.mark.parametrize(
    ("planned", "start", "ranks", "max_steps", "steps", "stop"),
    [
        (20, (0, 0), 1, -1, 3, 20),  # a last step of four
        (20, (0, 0), 2, -1, 2, 16),  # left out: two ranks must stop together
        (20, (0, 0), 1, 2, 2, 16),
        (20, (2, 16), 1, 2, 2, 16),  # at its end
        (20, (2, 16), 1, 1, 2, 16),  # beyond its end
        (20, (4, 10), 1, -1, 6, 20),  # resumed at a position that is no multiple of the batch
    ],
)
def test_steps_follow_from_the_samples_that_are_left(planned, start, ranks, max_steps, steps, stop):
    schedule = make_schedule(
        planned, start_step=start[0], start_position=start[1], global_batch=8, ranks=ranks, max_steps=max_steps
    )
    assert (schedule.steps, schedule.stop_position) == (steps, stop)
    assert schedule.position(start[0]) == start[1]
    assert schedule.position(steps) == stop


def test_two_processes_train_the_same_as_one(make_config, produce, tmp_path):
    together = make_config(gradient_accumulation_steps=2, trainer_arguments={"optim": "sgd"})
    produce(together, 27)
    process = start_script(together, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    output = process.communicate(timeout=2 * TIMEOUT_S)[0]
    assert process.returncode == 0, output
    alone = make_config(
        namespace="alone", output_dir=str(tmp_path / "alone"), gradient_accumulation_steps=4, max_steps=3,
        trainer_arguments={"optim": "sgd"},
    )  # fmt: skip
    produce(alone, 27)
    train(alone)
    lines = trained_samples(together)
    assert sorted(position for line in lines for position in line["positions"]) == list(range(24))
    for line in lines:  # rank r has the micro-batches r, r + 2, r + 4, …
        assert line["positions"][0] // 2 % 2 == line["rank"]
    assert largest_difference(output_dir(together), output_dir(alone)) < 1e-5


# --- the loss ---


def test_accumulated_micro_batches_weigh_like_one_big_batch(make_config, produce, tmp_path):
    """With plain SGD at rate 1 and no clipping, the change of the weights is the gradient."""
    plain = {"optim": "sgd", "max_grad_norm": 0.0}
    big = make_config(
        namespace="big", output_dir=str(tmp_path / "big"), per_device_train_batch_size=8, max_steps=1,
        learning_rate=1.0, lr_scheduler_type="constant", trainer_arguments=plain,
    )  # fmt: skip
    small = dataclasses.replace(big, redis=dataclasses.replace(big.redis, namespace="small"))
    small.model = dataclasses.replace(
        big.model, output_dir=str(tmp_path / "small"), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    losses = []
    for config in (big, small):
        produce(config, 8)
        trainer, _ = train(config)
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert largest_difference(output_dir(big), output_dir(small)) < 1e-5
    start = Path(big.model.model_name)
    assert largest_difference(output_dir(big), start) > 1e-3  # or nothing was trained
    lengths = [len(load_transcript_encoder(big.model).encode(word)) for word in ("one", "one two three")]
    assert lengths[0] != lengths[1]  # unequal labels, for which a mean of means would be another


def test_the_model_is_shown_one_start_token_and_predicts_none(tiny_checkpoint):
    config = WhisperConfig.from_pretrained(tiny_checkpoint)
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))
    features = np.zeros((80, 100), np.float16)
    samples = [Sample(features, encoder.encode(text), 0, "", 0.0, "", 1.0, "") for text in ("one", "two three four")]
    batch = BatchMaker(400, config.decoder_start_token_id, config.pad_token_id)(samples)
    start = config.decoder_start_token_id
    assert (batch["decoder_input_ids"][:, 0] == start).all()
    assert (batch["decoder_input_ids"] == start).sum() == 2
    assert (batch["labels"] != start).all()
    shifted = torch.where(batch["labels"] == -100, config.pad_token_id, batch["labels"])[:, :-1]
    assert (batch["decoder_input_ids"][:, 1:] == shifted).all()
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    assert batch["input_features"].shape == (2, 80, 400)


# --- stopping and going on ---


def test_a_run_that_was_killed_ends_with_the_weights_of_an_undisturbed_one(make_config, produce, tmp_path):
    killed = make_config(dropout=0.1, gradient_accumulation_steps=2, save_steps=2)
    producer = produce(killed, 30, available=22)
    process = start_script(killed)
    try:
        wait_until(lambda: lines_in_record(killed) >= 10)  # step 5; the checkpoint is at step 4
    finally:
        process.kill()
        process.communicate()
    producer.available = 30
    train(killed)
    assert trained_positions(killed) == list(range(30))

    calm = make_config(
        namespace="calm", output_dir=str(tmp_path / "calm"), dropout=0.1, gradient_accumulation_steps=2, save_steps=2
    )
    produce(calm, 30)
    train(calm)
    assert largest_difference(output_dir(killed), output_dir(calm)) == 0.0
    losses = [{line["positions"][0]: line["loss"] for line in trained_samples(config)} for config in (killed, calm)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("signal_number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_while_waiting_for_samples_saves_and_ends(make_config, produce, signal_number, workers):
    config = make_config(gradient_accumulation_steps=2, dataloader_num_workers=workers)
    # The eleventh to fourteenth sample: a micro-batch and a half that no step will be made of.
    producer = produce(config, 24, available=15)
    with (
        signal_when(lambda: lines_in_record(config) >= 4, signal_number) as sent,
        pytest.raises(Interruption) as caught,
    ):
        train(config)
    assert time.monotonic() - sent[0] < 15
    assert caught.value.exit_code == 128 + signal_number
    checkpoints = sorted(path.name for path in output_dir(config).glob("checkpoint-*"))
    marker = json.loads((output_dir(config) / checkpoints[-1] / MARKER).read_text())
    assert marker["position"] == 4 * marker["step"] >= 8
    producer.available = 24
    train(config)
    assert trained_positions(config) == list(range(24))


def test_the_script_ends_with_143_after_sigterm_while_busy(make_config, produce):
    config = make_config(dataloader_num_workers=1)
    produce(config, 4000)
    process = start_script(config)
    wait_until(lambda: lines_in_record(config) >= 3)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    output = process.communicate(timeout=30)[0]
    assert time.monotonic() - asked < 20
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert "stopped by SIGTERM" in output
    newest = max(output_dir(config).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    marker = json.loads((newest / MARKER).read_text())
    assert marker["position"] == len(trained_positions(config)) == 2 * marker["step"]


def test_a_run_goes_on_with_another_batch_size_at_the_same_position(make_config, produce, caplog):
    first = make_config(per_device_train_batch_size=3)
    producer = produce(first, 30, available=9)
    with signal_when(lambda: lines_in_record(first) >= 2, signal.SIGTERM), pytest.raises(Interruption):
        train(first)
    assert trained_positions(first) == list(range(6))
    producer.available = 30
    second = make_config(gradient_accumulation_steps=2, dataloader_num_workers=2)
    with caplog.at_level(logging.INFO):
        trainer, _ = train(second)
    assert "step 2, position 6 of 30" in caplog.text
    assert trainer.state.global_step == 2 + 6
    assert trained_positions(second) == list(range(30))
    assert trainer.state.epoch == pytest.approx(2.0)


# --- evaluation, the best model, the end ---


def test_the_saved_folder_transcribes_by_itself(make_config, produce, eval_manifest, tmp_path):
    config = make_config(max_steps=2, eval_manifest=eval_manifest, trainer_arguments={"eval_on_start": True})
    produce(config, 8)
    _, report = train(config)
    folder = output_dir(config)
    waveform, sampling_rate = soundfile.read(DIGITS / "eval" / "0000.ogg", dtype="float32")
    recognise = pipeline("automatic-speech-recognition", model=str(folder))
    assert isinstance(recognise({"raw": waveform, "sampling_rate": sampling_rate})["text"], str)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["language"], generation["task"]) == ("english", "transcribe")
    assert "WER: " in report
    assert " → " in report  # before and after
    assert transcription_command(folder.resolve()) in report
    command = shlex.split(transcription_command(folder, str(DIGITS / "eval" / "0000.ogg")))
    exec(command[2], {})  # the line that the report tells to copy
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    rates = [entry for entry in history if "eval_wer" in entry]
    assert rates[0]["step"] == 0
    assert {"eval_wer", "eval_cer", "eval_wer_normalized", "eval_cer_normalized", "eval_loss"} <= set(rates[-1])


def test_early_stopping_gives_back_the_best_model_and_ends_the_producer(make_config, produce, eval_manifest, tmp_path):
    config = make_config(
        eval_manifest=eval_manifest, eval_steps=1, save_steps=3, early_stopping_patience=2, learning_rate=1e-12,
        metric_for_best_model="wer", dataloader_num_workers=1,
    )  # fmt: skip
    producer = produce(config, 40, available=20)
    trainer, _ = train(config)
    assert trainer.state.global_step == 3  # the first is the best, then two that are no better
    assert trainer.model_step == 1  # which has a checkpoint although save_steps is 3
    assert largest_difference(output_dir(config), output_dir(config) / "checkpoint-1") == 0.0
    producer.join(timeout=10)
    assert not producer.is_alive()


def test_an_evaluation_that_a_signal_cuts_short_is_made_up_for(make_config, produce, eval_manifest):
    config = make_config(
        eval_manifest=eval_manifest, eval_steps=2, save_steps=2, max_steps=4, per_device_eval_batch_size=1
    )
    producer = produce(config, 8)
    evaluating = threading.Event()
    original = StreamTrainer.prediction_step

    def prediction_step(self, *args, **kwargs):
        evaluating.set()
        return original(self, *args, **kwargs)

    StreamTrainer.prediction_step = prediction_step
    try:
        with signal_when(evaluating.is_set, signal.SIGTERM), pytest.raises(Interruption):
            train(config)
    finally:
        StreamTrainer.prediction_step = original
    assert (output_dir(config) / "checkpoint-2" / MARKER).is_file()
    assert producer.is_alive()
    trainer, _ = train(config)
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated[:2] == [2, 4]


def test_a_finished_run_started_again_says_so(make_config, produce):
    config = make_config(max_steps=2)
    produce(config, 8)
    train(config)
    with pytest.raises(UserError, match=r"is finished.*redis_manager.py clear.*The model that was trained lies in"):
        train(config)


def test_a_finished_run_on_a_cleared_queue_has_nothing_left_to_train(make_config, produce, caplog):
    config = make_config(max_steps=2)
    produce(config, 8).leave()
    train(config)
    before = weights(output_dir(config))
    cleared = make_config(max_steps=2, namespace="cleared")
    produce(cleared, 8)
    with caplog.at_level(logging.INFO):
        _, report = train(cleared)
    assert "nothing is left to train" in caplog.text
    assert "2 steps, 4 samples" in report
    after = weights(output_dir(config))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_without_an_evaluation_manifest_one_line_says_what_that_means(make_config, produce, caplog):
    config = make_config(max_steps=1)
    produce(config, 8)
    with caplog.at_level(logging.INFO):
        train(config)
    assert "no evaluation, no best model, no early stopping" in caplog.text


def test_logs_say_how_full_the_queue_is_and_how_long_it_kept_training_waiting(make_config, produce, caplog):
    config = make_config(max_steps=4, dataloader_num_workers=1)
    producer = produce(config, 8, available=0, pause_s=0.2)

    def begin() -> None:
        wait_until(lambda: producer._writer.status().trainer_attached)  # else all is there before training asks for it
        producer.available = 8

    threading.Thread(target=begin, daemon=True).start()
    with caplog.at_level(logging.INFO):
        trainer, _ = train(config)
    logs = [entry for entry in trainer.state.log_history if "queue_depth" in entry]
    assert len(logs) == 4
    assert sum(entry["queue_wait_s"] for entry in logs) > 0.5
    assert trainer.progress.waited_s > 0.5
    assert [entry["epoch"] for entry in logs] == [0.5, 1.0, 1.5, 2.0]
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert len(lines) == 4
    assert "waited" in lines[0]


def test_the_encoder_stays_as_it_is_when_frozen(make_config, produce):
    config = make_config(max_steps=2, freeze_feature_encoder=True, gradient_checkpointing=True)
    produce(config, 8)
    train(config)
    before, after = weights(Path(config.model.model_name)), weights(output_dir(config))
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed
    assert not {name for name in changed if "encoder" in name.split(".")}


# --- what cannot work ---


def test_a_trainer_that_is_fenced_off_says_so_in_one_line(make_config, produce):
    config = make_config(dataloader_num_workers=1)
    produce(config, 40, available=10)

    def take_over() -> None:
        wait_until(lambda: lines_in_record(config) >= 2)
        other = SampleReader(config.redis, "other", torch.multiprocessing.Value("q", 0), threading.Event())
        other.attach(0)

    threading.Thread(target=take_over, daemon=True).start()
    with pytest.raises(FencedError, match=r"another trainer .* has taken over") as caught:
        train(config)
    assert "\n" not in str(caught.value)


def test_a_producer_that_is_gone_ends_the_run_with_a_checkpoint(make_config, produce):
    config = make_config()
    config.redis.producer_timeout_s = 1.0
    producer = produce(config, 40, available=7)

    def leave() -> None:
        wait_until(lambda: lines_in_record(config) >= 2)
        producer.leave()

    threading.Thread(target=leave, daemon=True).start()
    with pytest.raises(ProducerGoneError, match=r"start prepro_add2radis.py again"):
        train(config)
    newest = max(output_dir(config).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert json.loads((newest / MARKER).read_text())["position"] == 4


def test_what_does_not_fit_together_is_refused_in_one_line(make_config, produce, tmp_path, tiny_checkpoint):
    produce(make_config(), 24)
    make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", tmp_path / "longer", chunk_length=5)
    make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", tmp_path / "finer", num_mel_bins=128)
    (tmp_path / "a file").write_text("")
    refusals = [
        (make_config(model_name=str(tmp_path / "longer")), "have 400 frames in a window, the model takes 500"),
        (make_config(model_name=str(tmp_path / "finer")), "have 80 mel bins, the model takes 128"),
        (make_config(language="German"), "another tokenizer, language or task"),
        (make_config(model_name=str(tmp_path / "missing")), "cannot load model.model_name"),
        (make_config(output_dir=str(tmp_path / "a file")), "cannot write .*--model.output_dir"),
        (make_config(per_device_train_batch_size=25), "24 samples, fewer than the 25 of one optimizer step"),
        (make_config(trainer_arguments={"max_gradnorm": 1}), "did you mean 'max_grad_norm'"),
        (make_config(trainer_arguments={"ignore_data_skip": False}), "leave it out"),
        (make_config(trainer_arguments={"optim": "no such optimizer"}), "refuses the training arguments"),
        (make_config(eval_manifest=str(tmp_path / "missing.csv")), "no manifest at"),
    ]
    for config, message in refusals:
        with pytest.raises(UserError, match=message) as caught:
            train(config)
        assert "\n" not in str(caught.value)


def test_a_limit_that_cannot_hold_a_global_batch_is_refused_with_the_one_that_can(make_config, produce):
    config = make_config(per_device_train_batch_size=1000)
    produce(config, 2000, available=4)
    with pytest.raises(CapacityError, match=r"--redis.max_memory_gb"):
        train(config)


def test_a_trainer_that_is_refused_leaves_alone_what_another_may_be_saving(make_config, produce):
    config = make_config(per_device_train_batch_size=1000)
    produce(config, 2000, available=4)
    half_written = output_dir(config) / "checkpoint-70"
    half_written.mkdir(parents=True)
    with pytest.raises(CapacityError):
        train(config)
    assert half_written.is_dir()


def test_a_warm_up_longer_than_the_run_is_warned_of(make_config, produce, caplog):
    config = make_config(max_steps=2, warmup_steps=888)
    produce(config, 8)
    train(config)
    assert "the learning rate never reaches its peak" in caplog.text
