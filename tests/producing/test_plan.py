"""The plan is a pure function of position, and over its epochs every recording meets every augmentation."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioaugmentations import AudioAugmentations, Step
from config import AudioAugmentationConfig, Config, DataConfig
from producing.plan import ORIGINAL_VARIANT, Blocks, Plan, Shares, fingerprint

PLAN = Plan(seed=1, rows=50, epochs=3, include_original=True, augmented_copies=2)


def test_each_epoch_has_each_variant_of_each_recording_once():
    draws = [PLAN.draw(position) for position in range(len(PLAN))]
    assert len(draws) == 3 * 50 * 3
    for epoch in range(3):
        pairs = Counter((draw.row, draw.variant) for draw in draws if draw.epoch == epoch)
        assert pairs == Counter((row, variant) for row in range(50) for variant in range(3))


def test_epochs_have_different_orders():
    orders = [[PLAN.draw(150 * epoch + i).row for i in range(150)] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_originals_only_and_copies_only():
    originals = Plan(1, 10, 1, include_original=True, augmented_copies=0)
    assert {originals.draw(p).variant for p in range(len(originals))} == {ORIGINAL_VARIANT}
    copies = Plan(1, 10, 1, include_original=False, augmented_copies=2)
    assert {copies.draw(p).variant for p in range(len(copies))} == {1, 2}


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("include_original", [True, False])
def test_no_augmentation_or_option_comes_to_a_recording_again_before_all_others_have_come(
    tmp_path, copies, include_original
):
    """Between two visits of an augmentation lie all others, and between two of an option all others of its list."""
    config = AudioAugmentationConfig(far_field_effect_prob=0)  # options: 6, 2, 5, 3, 1 and 1
    augmentations = AudioAugmentations(config, tmp_path, 480_000)
    enabled, options = augmentations.enabled, augmentations.options
    plan = Plan(seed=1, rows=5, epochs=80, include_original=include_original, augmented_copies=copies)
    met: dict[int, list[Step]] = {row: [] for row in range(plan.rows)}
    copies_in_order = sorted(map(plan.draw, range(len(plan))), key=lambda draw: (draw.epoch, draw.variant))
    for draw in copies_in_order:
        if draw.variant != ORIGINAL_VARIANT:
            met[draw.row] += augmentations.choose(draw.turn, 16_000, plan.generator(draw.position)).steps
    for steps in met.values():
        assert len(steps) == copies * plan.epochs
        for start in range(len(steps) - len(enabled) + 1):
            assert {step.name for step in steps[start : start + len(enabled)]} == set(enabled)
        for name in enabled:
            given, count = [step.option for step in steps if step.name == name], len(options[name])
            for start in range(len(given) - count + 1):
                assert set(given[start : start + count]) == set(options[name])


SHARED_PLAN = Plan(3, 131, 9, True, 1, shares=Shares((100, 7, 0, 24), (0.3, 2.0, 5.0, 1.5)))


def visits(plan: Plan, epoch: int) -> Counter[int]:
    """How often each row comes in an epoch, as an original."""
    size = plan.samples_per_epoch
    draws = map(plan.draw, range(epoch * size, (epoch + 1) * size))
    return Counter(draw.row for draw in draws if draw.variant == ORIGINAL_VARIANT)


def test_a_weight_says_how_often_the_recordings_of_a_corpus_come_in_an_epoch():
    assert SHARED_PLAN.samples_per_epoch == 2 * (30 + 14 + 36)
    assert len(SHARED_PLAN) == 9 * SHARED_PLAN.samples_per_epoch
    epochs = [visits(SHARED_PLAN, epoch) for epoch in range(9)]
    for met in epochs:
        assert sorted(met[row] for row in range(100)) == [0] * 70 + [1] * 30
        assert {met[row] for row in range(100, 107)} == {2}
        assert sorted(met[row] for row in range(107, 131)) == [1] * 12 + [2] * 12
    assert set(epochs[0]) & set(epochs[1]) <= set(range(100, 131))  # the next 30 % are fresh
    for stop in range(1, 10):
        together = sum((epochs[epoch] for epoch in range(stop)), Counter())
        for rows in (range(100), range(100, 107), range(107, 131)):
            counts = [together[row] for row in rows]
            assert max(counts) - min(counts) <= 1


def test_the_copies_of_a_recording_take_consecutive_turns_however_often_its_corpus_comes():
    plan = dataclasses.replace(SHARED_PLAN, augmented_copies=2)
    draws = [plan.draw(position) for position in range(len(plan))]
    for row in (0, 50, 103, 120):
        turns = [draw.turn for draw in draws if draw.row == row and draw.variant != ORIGINAL_VARIANT]
        assert sorted(turns) == list(range(row + 1, row + 1 + len(turns)))


def test_a_corpus_is_drawn_alike_whatever_comes_after_it_and_at_least_one_of_it_comes():
    alone = Plan(3, 100, 9, True, 1, shares=Shares((100,), (0.3,)))
    assert visits(alone, 4) == {row: n for row, n in visits(SHARED_PLAN, 4).items() if row < 100}
    assert Plan(1, 10, 1, True, 0, shares=Shares((10,), (0.001,))).samples_per_epoch == 1
    with pytest.raises(ValueError, match="shares of 9 recordings in a plan of 10"):
        Plan(1, 10, 1, True, 0, shares=Shares((9,), (1.0,)))


def test_an_epoch_of_1_400_000_weighted_recordings_is_ready_in_seconds():
    plan = Plan(1, 1_400_000, 2, True, 0, shares=Shares((14_000,) * 100, (0.9, 1.1) * 50))
    began = time.process_time()
    assert len({plan.draw(position).row for position in range(1_399_000, 1_401_000)}) > 1990
    assert time.process_time() - began < 5


def test_with_one_copy_a_recording_takes_one_turn_per_epoch():
    plan = Plan(seed=1, rows=50, epochs=3, include_original=True, augmented_copies=1)
    turns = sorted((d.epoch, d.turn) for d in map(plan.draw, range(len(plan))) if (d.row, d.variant) == (7, 1))
    assert turns == [(0, 8), (1, 9), (2, 10)]


@settings(max_examples=50)
@given(st.integers(0, 10**9), st.integers(1, 500), st.integers(1, 4), st.data())
def test_a_position_means_the_same_whenever_it_is_asked_for(seed, rows, epochs, data):
    plan = Plan(seed, rows, epochs, include_original=True, augmented_copies=1)
    position = data.draw(st.integers(0, len(plan) - 1))
    first = plan.draw(position), plan.generator(position).random(), plan.replacement(position, 1)
    plan.draw(0), plan.draw(len(plan) - 1)
    assert (plan.draw(position), plan.generator(position).random(), plan.replacement(position, 1)) == first


def test_another_process_computes_the_same_plan():
    code = (
        "from producing.plan import Plan; p = Plan(1, 50, 3, True, 2);"
        "print([(p.draw(i).row, p.draw(i).variant, p.generator(i).integers(10**9)) for i in range(0, 450, 7)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    draws = [PLAN.draw(i) for i in range(0, 450, 7)]
    assert other == str([(d.row, d.variant, PLAN.generator(d.position).integers(10**9)) for d in draws])


BLOCKS = Blocks(recordings=(5, 20, 1, 10, 14) * 8, sizes=(500, 2100, 90, 1000, 1300) * 8, window_bytes=8000)
BLOCK_PLAN = Plan(seed=1, rows=400, epochs=2, include_original=True, augmented_copies=1, blocks=BLOCKS)


def block_of(row: int) -> int:
    return int(np.searchsorted(np.cumsum(BLOCKS.recordings), row, side="right"))


def test_a_sliding_window_has_each_variant_of_each_recording_once_in_another_order_each_epoch():
    orders = [[(d.row, d.variant) for d in map(BLOCK_PLAN.draw, range(800 * e, 800 * (e + 1)))] for e in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == [(row, variant) for row in range(400) for variant in range(2)]
    assert orders[0] != orders[1]


def test_blocks_in_use_together_fit_into_the_window_and_one_block_more():
    for epoch in range(2):
        blocks = [block_of(BLOCK_PLAN.draw(p).row) for p in range(800 * epoch, 800 * (epoch + 1))]
        first = {block: blocks.index(block) for block in set(blocks)}
        last = {block: len(blocks) - 1 - blocks[::-1].index(block) for block in set(blocks)}
        in_use = [sum(BLOCKS.sizes[b] for b in first if first[b] <= p <= last[b]) for p in range(800)]
        assert max(in_use) <= BLOCKS.window_bytes + max(BLOCKS.sizes)
        assert np.median(in_use) > BLOCKS.window_bytes / 2


def test_blocks_come_in_another_order_each_epoch():
    begins = [[block_of(BLOCK_PLAN.draw(p).row) for p in range(800 * e, 800 * e + 100)] for e in range(2)]
    assert max(begins[0]) > 20
    assert len(set(begins[0]) & set(begins[1])) < len(set(begins[0])) / 2


def test_neighbours_in_the_stream_come_from_all_blocks_of_the_window():
    blocks = [block_of(BLOCK_PLAN.draw(p).row) for p in range(800)]
    assert np.median([len(set(blocks[p : p + 32])) for p in range(768)]) > 5


@pytest.mark.parametrize("plan", [BLOCK_PLAN, SHARED_PLAN])
def test_another_process_computes_the_same_sliding_window_and_the_same_shares(plan):
    code = (
        "import pickle, sys; p = pickle.load(open(sys.argv[1], 'rb'));"
        "print([(p.draw(i).row, p.draw(i).variant) for i in range(0, len(p), 7)])"
    )
    with tempfile.NamedTemporaryFile() as file:
        file.write(pickle.dumps(plan))
        file.flush()
        other = subprocess.run([sys.executable, "-c", code, file.name], capture_output=True, text=True, check=True)
    draws = [plan.draw(i) for i in range(0, len(plan), 7)]
    assert other.stdout.strip() == str([(d.row, d.variant) for d in draws])


def test_blocks_that_are_not_those_of_the_recordings_are_refused():
    with pytest.raises(ValueError, match="blocks of 400 recordings in a plan of 399"):
        dataclasses.replace(BLOCK_PLAN, rows=399)


def test_positions_outside_the_plan_do_not_exist():
    for position in (-1, len(PLAN)):
        with pytest.raises(IndexError):
            PLAN.draw(position)


def test_a_plan_of_693_000_recordings_is_ready_at_once():
    large = Plan(1, 693_000, 5, include_original=True, augmented_copies=1)
    assert {large.draw(p).row for p in range(1000)} != set(range(1000))
    assert large.draw(len(large) - 1).epoch == 4


def test_the_fingerprint_changes_with_all_that_decides_samples_and_with_nothing_else(tiny_recordings):
    recordings, spec, encoder = tiny_recordings

    def mark(config: Config, augmentations: str = "a") -> str:
        return fingerprint(config, recordings, spec, encoder, augmentations)

    base = mark(Config())
    assert mark(Config()) == base
    for data in (
        {"seed": 1},
        {"epochs": 1},
        {"augmented_copies": 2},
        {"peak_normalize": False},
        {"feature_dtype": "float32"},
    ):
        assert mark(Config(data=DataConfig(**data))) != base
    assert mark(Config(audio_augmentation=AudioAugmentationConfig(speed_factors=[1.1]))) != base
    assert mark(Config(), "b") != base
    same = DataConfig(num_workers=3, chunk_size=5, cache_dir="elsewhere", train_manifest="moved/train.csv")
    assert mark(Config(data=same)) == base
    moved = AudioAugmentationConfig(bg_noise_file_list=["/another/place"])
    assert mark(Config(audio_augmentation=moved)) == base
    gain = AudioAugmentationConfig(extra_transforms=["audiomentations.Gain"])
    assert len({base, mark(Config(audio_augmentation=gain))}) == 2
    unused = AudioAugmentationConfig(extra_transforms_prob=0.5)
    assert mark(Config(audio_augmentation=unused)) == base
    other_model = dataclasses.replace(spec, num_mel_bins=128)
    assert fingerprint(Config(), recordings, other_model, encoder, "a") != base


@pytest.fixture
def tiny_recordings(tiny_checkpoint, write_recording, write_manifest):
    from config import ModelConfig
    from corpus.scan import load_recordings
    from features.feature_spec import load_feature_spec
    from features.labels import load_transcript_encoder

    rows = [{"audio": write_recording(f"{i}.wav").name, "text": "one"} for i in range(3)]
    manifest = write_manifest(rows)
    data = DataConfig(cache_dir=str(manifest.parent / "cache"))
    spec = load_feature_spec(str(tiny_checkpoint))
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))
    report = Path(manifest.parent / "rejected.jsonl")
    return load_recordings(str(manifest), data, spec, encoder, report=report, processes=0), spec, encoder
