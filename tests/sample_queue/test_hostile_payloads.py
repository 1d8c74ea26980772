"""What others put into the queue is never executed and never trained on, and the remedy in the message works."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis

from features.sample import PayloadError, Sample, SampleLimits, encode_sample
from sample_queue.protocol import PlanCard
from sample_queue.reader import SampleReader
from sample_queue.writer import SampleWriter
from tests.features.test_sample import Canary
from tests.runs import PRODUCER, TRAINER, ending, wait_until
from training.batches import BatchMaker, StreamCollator

CARD = PlanCard("plan-a", 100, 50, 80, 400, "float16", "tokenizer", 70_000)
LIMITS = SampleLimits(num_mel_bins=80, window_frames=400, max_tokens=20, vocabulary=1000)
GOOD = Sample(np.zeros((80, 30), np.float16), np.array([7, 1], np.int32), 2, "id", -1.0, "original", 0.3, "plan-a")


def changed(**changes: Any) -> bytes:
    """A sample that is right but for one thing, its checksum included."""
    return encode_sample(dataclasses.replace(GOOD, **changes))


def with_a_flipped_bit(payload: bytes) -> bytes:
    """Damage in the middle of the features: they stay finite and of the right shape."""
    middle = len(payload) - 2000
    return payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]


@pytest.fixture
def collator(redis_config) -> StreamCollator:
    """A trainer's collator on a queue with four samples, of which the third, at position 2, may be exchanged."""
    writer = SampleWriter(redis_config, CARD)
    writer.open()
    writer.push(0, [changed(position=position) for position in range(4)])
    reader = SampleReader(redis_config, "trainer-1", SimpleNamespace(value=0), threading.Event())
    reader.attach(0)
    return StreamCollator(reader, CARD, "whisper:samples", LIMITS, BatchMaker(400, 7, 0))


def test_the_queue_of_these_tests_is_right_but_for_what_they_change(collator: StreamCollator) -> None:
    assert collator([0, 1, 2, 3])["input_features"].shape == (4, 80, 400)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "does not begin as a sample does"),
        (encode_sample(GOOD)[:-1], "checksum"),
        (with_a_flipped_bit(encode_sample(GOOD)), "checksum"),
        (changed(input_features=np.zeros((80, 30), np.float32).view(np.int32)), "number formats I32 and I32"),
        (changed(input_features=np.zeros((128, 30), np.float16)), r"features of shape \[128, 30\]"),
        (changed(labels=np.array([7, 1000], np.int32)), "labels from 7 to 1000"),
        (changed(plan="plan-b"), "belongs to plan 'plan-b'"),
        (changed(position=3), "it says position 3"),
        (changed(input_features=np.full((80, 30), np.nan, np.float16)), "NaN"),
    ],
    ids=["nothing", "truncated", "bit flipped", "dtype", "shape", "labels", "plan", "position", "NaN"],
)
@pytest.mark.parametrize("taken_before", [False, True], ids=["queued", "in flight"])
def test_a_damaged_payload_is_refused_with_its_key_and_position(
    collator: StreamCollator, redis_config, payload: bytes, reason: str, taken_before: bool
) -> None:
    with redis.Redis(port=redis_config.port) as client:
        if taken_before:
            collator([0, 1, 2, 3])
        client.lset("whisper:inflight" if taken_before else "whisper:samples", 2, payload)
    with pytest.raises(PayloadError, match=rf"position 2 in Redis key 'whisper:samples' .*{reason}") as refusal:
        collator([0, 1, 2, 3])
    assert "python redis_manager.py clear" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_pickle_in_the_queue_is_refused_and_not_executed(
    collator: StreamCollator, redis_config, tmp_path: Path
) -> None:
    trap = pickle.dumps(Canary(tmp_path / "trace"))
    with redis.Redis(port=redis_config.port) as client:
        client.lset("whisper:samples", 2, trap)
    with pytest.raises(PayloadError, match=r"position 2 .*does not begin as a sample does"):
        collator([0, 1, 2, 3])
    assert not (tmp_path / "trace").exists()
    pickle.loads(trap)
    assert (tmp_path / "trace").exists(), "the canary itself must work"


@pytest.mark.parametrize(
    ("producer_lives", "workers"), [(True, 0), (False, 1)], ids=["the producer lives", "the producer is gone"]
)
def test_the_trainer_refuses_a_pickle_and_the_remedy_it_names_loses_nothing(
    make_run: Callable, tmp_path: Path, producer_lives: bool, workers: int
) -> None:
    """40 samples; a pickle takes the place of one that the trainer would meet in its sixth step."""
    run = make_run(model__dataloader_num_workers=workers, model__save_steps=3)
    trace = tmp_path / "trace"
    with ending(run.start(PRODUCER)) as (producer,):
        wait_until(lambda: "pushed 40 samples" in producer.out)
        with redis.Redis(port=run.redis_config.port) as client:
            client.lset("test:samples", 21, pickle.dumps(Canary(trace)))
        assert producer.finish()[0] == 0
    code, _, err = run.finish(TRAINER)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1, err
    assert "position 21 in Redis key 'test:samples'" in errors[0]
    assert "Traceback" not in err
    assert not trace.exists()
    assert run.trained_positions() in (list(range(16)), list(range(20)))  # Hugging Face fetches a batch ahead

    # The remedy, as the message says it.
    with ending(*([run.start(PRODUCER)] if producer_lives else [])):
        if producer_lives:
            time.sleep(2)
        run.manage("clear")
        with ending(run.start(TRAINER), *([] if producer_lives else [run.start(PRODUCER)])) as (trainer, *_):
            assert trainer.finish()[0] == 0
    assert run.trained_positions() == list(range(40))
    assert not trace.exists()
