"""Transforms that the user names take part like the eight of the project, and mistakes are told at the start."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import audioaugmentations
from audio.augmentation_registry import AUGMENTATIONS
from audio.extra_transforms import ExtraTransform, TransformError, parse_transform
from audioaugmentations import AudioAugmentations, Choice, Step
from common.errors import ConfigurationError
from config import AudioAugmentationConfig
from producing.worker_pool import SampleMaker, WorkerPool

ROOT = Path(__file__).parents[2]
RATE = 16_000
OWN = '''
import random
import numpy as np

class Crackle:
    """Draws from both of the global generators, and shortens."""

    def __init__(self, strength=1.0, name=""):
        self.strength, self.name = strength, name

    def __call__(self, samples, sample_rate):
        assert samples.dtype == np.float32 and sample_rate == 16000
        for _ in range(20):
            samples[random.randrange(len(samples))] = self.strength * np.random.uniform(-1, 1)
        return samples[: len(samples) * 3 // 4]

class Returning:
    """Returns what it is told to."""

    def __init__(self, what):
        self.what = what

    def __call__(self, samples, sample_rate):
        return eval(self.what)

class NotCallable:
    pass
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    """Name of a module with the transforms above."""
    folder = tmp_path / "modules"
    folder.mkdir()
    name = f"own_transforms_{abs(hash(str(tmp_path)))}"
    (folder / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    return name


def four(own_module: str) -> list[str]:
    """Three of audiomentations' and one of one's own."""
    return [
        "audiomentations.ClippingDistortion min_percentile_threshold=5",
        "audiomentations.Gain min_gain_db=-6 max_gain_db=6",
        "audiomentations.TimeStretch min_rate=1.1 max_rate=1.4 leave_length_unchanged=False",
        f"{own_module}.Crackle strength=0.5",
    ]


LABELS = ["ClippingDistortion", "Gain", "TimeStretch", "Crackle"]
ONLY_EXTRA = {row.prob_field: 0.0 for row in AUGMENTATIONS.values()}


def augmenting(tmp_path: Path, *transforms: str, max_samples: int = 30 * RATE, **options) -> AudioAugmentations:
    config = AudioAugmentationConfig(extra_transforms=list(transforms), **{**ONLY_EXTRA, **options})
    return AudioAugmentations(config, tmp_path, max_samples)


def test_they_take_turns_and_are_counted_and_named_and_any_number_of_workers_makes_the_same_bytes(
    make_recipe, own_module
):
    extra = {"extra_transforms": four(own_module)}
    recipe = make_recipe({"epochs": 3}, extra)
    whole = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
    assert all(whole.augmentations[label] for label in LABELS)
    for label in LABELS:
        assert f'"{label}"'.encode() in b"".join(whole.payloads).replace(b"\\", b"")
    for processes in (1, 2):
        made: list[bytes] = []
        with WorkerPool(recipe, processes) as pool:
            while len(made) < len(recipe.plan):
                made += pool.chunk_at(len(made), lambda: None).payloads
        assert made == whole.payloads
    several = make_recipe({"epochs": 3}, {**extra, "multiple_aug": True, "extra_transforms_prob": 1.0})
    chunk = SampleMaker(several).make_chunk(0, 24)
    assert {chunk.augmentations[label] for label in LABELS} == {24 - chunk.augmentations["original"]}
    assert len({recipe.fingerprint, several.fingerprint, make_recipe({"epochs": 3}).fingerprint}) == 3


def test_they_come_after_the_others_that_change_the_waveform(tmp_path, own_module):
    masks = {"time_n_freq_masking_prob": 0.5, "color_noise_prob": 0.5}
    assert augmenting(tmp_path, *four(own_module), **masks).enabled == ("color_noise", *LABELS, "masking")
    assert augmenting(tmp_path, *four(own_module), extra_transforms_prob=0).enabled == ()


def test_with_multiple_aug_each_fires_by_the_probability(tmp_path, own_module):
    augmentations = augmenting(tmp_path, *four(own_module)[1:], multiple_aug=True, extra_transforms_prob=0.3)
    rng = np.random.default_rng(0)
    fired = Counter(step.name for _ in range(2000) for step in augmentations.choose(0, RATE, rng).steps)
    assert all(fired[label] / 2000 == pytest.approx(0.3, abs=0.04) for label in LABELS[1:])


def test_entries_of_one_class_have_labels_of_their_own(tmp_path, own_module):
    (tmp_path / "modules" / "other_own.py").write_text(
        "class speed:\n    def __call__(self, samples, sample_rate): ..."
    )
    entries = [f"{own_module}.Crackle", f"{own_module}.Crackle strength=0.1", "other_own.speed"]
    assert augmenting(tmp_path, *entries).enabled == ("Crackle#1", "Crackle#2", "speed#1")


def test_arguments_are_literals_or_else_strings():
    text = 'a.b.C number=-1.5 word=soft flag=True empty=None "values=[1, 2]" text="two words"'
    spec = parse_transform(text)
    assert (spec.module, spec.class_name) == ("a.b", "C")
    assert dict(spec.arguments) == {
        "number": -1.5, "word": "soft", "flag": True, "empty": None, "values": [1, 2], "text": "two words",
    }  # fmt: skip


def test_the_samples_own_generator_decides_whatever_the_global_ones_did_before(own_module):
    transform = ExtraTransform(parse_transform(f"{own_module}.Crackle"), "Crackle", RATE)
    silence = np.zeros(8000, np.float32)
    expected = [transform(silence, np.random.default_rng(seed)).tobytes() for seed in range(40)]
    assert len(set(expected)) == 40
    assert not silence.any()
    found: dict[int, bytes] = {}

    def work(seeds: range) -> None:
        for seed in seeds:
            found[seed] = transform(silence, np.random.default_rng(seed)).tobytes()

    threads = [threading.Thread(target=work, args=(range(start, 40, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(40)] == expected


def test_audiomentations_applies_always_unless_p_is_given(tmp_path):
    always = augmenting(tmp_path, "audiomentations.Reverse", "audiomentations.Reverse p=0.0")
    ramp, rng = np.linspace(-0.5, 0.5, 1000, dtype=np.float32), np.random.default_rng(0)
    first, second = (always.apply_waveform(ramp, always.choose(turn, 1000, rng), rng) for turn in range(2))
    np.testing.assert_array_equal(first, ramp[::-1])
    np.testing.assert_array_equal(second, ramp)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("samples[:0]", r"an array of float32 with the shape \[0\]"),
        ("samples[None]", r"with the shape \[1, 400\]"),
        ("samples * np.nan", "NaN or infinity"),
        ("(samples*100).astype(np.int16)", "an array of int16"),
        ("len(samples)", "a int"),
        ("np.tile(samples,2)", r"800 samples: expected at most 400.*max_duration_s"),
    ],
)
def test_an_unusable_result_is_an_error_that_names_the_transform(tmp_path, own_module, returned, expected):
    augmentations = augmenting(tmp_path, f"{own_module}.Returning what={returned!r}", max_samples=400)
    with pytest.raises(TransformError, match=f"^Returning returned {expected}|^Returning returned.*{expected}"):
        augmentations.apply_waveform(
            np.full(400, 0.5, np.float32), Choice((Step("Returning"),)), np.random.default_rng(0)
        )


def test_a_result_is_made_float32_and_scaled_into_the_range(tmp_path, own_module):
    augmentations = augmenting(tmp_path, f"{own_module}.Returning what=samples.astype(np.float64)*4")
    ramp = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    result = augmentations.apply_waveform(ramp, Choice((Step("Returning"),)), np.random.default_rng(0))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, 2 * ramp)


def test_a_failure_in_the_middle_of_a_run_names_transform_recording_and_position(make_recipe, own_module):
    extra = {"extra_transforms": [f"{own_module}.Returning what=1/0"], **ONLY_EXTRA}
    recipe = make_recipe({"include_original": False}, extra)
    expected = r"at position 0 \(recording r\d+, .*flac, Returning\): ZeroDivisionError: division by zero"
    with WorkerPool(recipe, 1) as pool, pytest.raises(Exception, match=expected):
        pool.chunk_at(0, lambda: None)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("no_such_module.Thing", "cannot import no_such_module.*put its folder on PYTHONPATH"),
        ("audiomentations.NoSuchThing", "audiomentations has no class NoSuchThing"),
        ("audiomentations.Gain no_such_argument=1", "no_such_argument"),
        ("audiomentations.Gain min_gain_db=6 max_gain_db=-6", "Gain cannot be used"),
        ("OWN.NotCallable", r"NotCallable has no __call__\(self, samples, sample_rate\)"),
        ("OWN.Returning what=samples[:0]", "Returning returned an array of float32 with the shape"),
        ("OWN.Returning what=samples['a']", "failed on a second of noise .NameError"),
    ],
)
def test_mistakes_are_told_at_the_start_in_one_line(own_module, entry, expected):
    entry = entry.replace("OWN", own_module)
    with pytest.raises(TransformError, match=expected) as caught:
        audioaugmentations.check(AudioAugmentationConfig(extra_transforms=[entry]))
    assert "\n" not in str(caught.value)
    audioaugmentations.check(AudioAugmentationConfig(extra_transforms=[entry], extra_transforms_prob=0))


@pytest.mark.parametrize("entry", ["", "Gain", "a.b.C 1", "a.b.C x=1 x=2", "a.b.C x='", "a-b.C", ".C"])
def test_an_entry_that_cannot_be_parsed_is_told_with_an_example(entry):
    with pytest.raises(ConfigurationError, match=r"audio_augmentation.extra_transforms.*expected 'module\.Class"):
        audioaugmentations.check(AudioAugmentationConfig(extra_transforms=[entry]))


def test_the_producer_tells_of_a_mistake_before_it_looks_at_the_recordings(run, write_manifest):
    write_manifest([{"audio": "missing.wav", "text": "x"}])
    entry = "audiomentations.Gain no_such_argument=1"
    code, _, err = run.finish("prepro_add2radis.py", audio_augmentation__extra_transforms=entry)
    assert code == 2
    assert "Traceback" not in err
    assert next(line for line in err.splitlines() if line.startswith("error:")).endswith("correct it, or leave it out")
    assert not (run.folder / "cache").exists()


def test_the_fingerprint_changes_with_the_entry_and_with_the_source_of_ones_own(tmp_path, own_module):
    def mark(*entries: str) -> str:
        return audioaugmentations.fingerprint(AudioAugmentationConfig(extra_transforms=list(entries)))

    found = [
        mark(),
        mark(f"{own_module}.Crackle"),
        mark(f"{own_module}.Crackle strength=2"),
        mark("audiomentations.Gain"),
    ]
    path = tmp_path / "modules" / f"{own_module}.py"
    path.write_text(path.read_text() + "\n# another version\n")
    assert mark(f"{own_module}.Crackle") == found[1], "the old code is still the one that runs"
    del sys.modules[own_module]
    assert len({*found, mark(f"{own_module}.Crackle")}) == 5


def test_audiomentations_is_imported_only_when_named():
    code = (
        "import sys; from pathlib import Path; import producing.sample_worker\n"
        "from audioaugmentations import AudioAugmentations\nfrom config import AudioAugmentationConfig\n"
        "c = AudioAugmentationConfig(far_field_effect_prob=0, extra_transforms=sys.argv[1:])\n"
        "AudioAugmentations(c, Path('none'), 1)\nprint('audiomentations' in sys.modules)"
    )

    def named(*entries: str) -> str:
        command = [sys.executable, "-c", code, *entries]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    assert named() == "False"
    assert named("audiomentations.Gain") == "True"
