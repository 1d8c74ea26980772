"""tools.check finds what is wrong with a corpus, says what it holds and takes, and ends with the right exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from config import DataConfig, ModelConfig
from corpus.manifest import ManifestError
from data_processor import SampleSettings, make_sample
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from features.sample import encode_sample
from sample_queue.memory import allocated
from tests.conftest import tone
from tests.runs import DIGITS, ROOT
from tools import check
from tools.checking import survey, surveyor
from tools.checking.audio_facts import is_clipped, is_silent
from tools.checking.duplicates import find_repeats, find_shared
from tools.checking.surveyor import Surveyor, kind_of
from tools.checking.tallies import ROW
from tools.checking.text_report import describe

CYRILLIC_O = "\u043e"
GOOD = 12


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(folder: Path, name: str, waveform: np.ndarray, sampling_rate: int = 16000) -> str:
    soundfile.write(folder / name, waveform, sampling_rate)
    return name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl and eval.jsonl, in which everything that can be found is there once or a few times."""
    folder = tmp_path_factory.mktemp("corpus")
    rows: list[dict] = [
        {
            "id": f"r{n}",
            "audio": write(folder, f"{n}.flac", tone(1 + n / 10, 200 + n, seed=n)),
            "text": f"one two {n % 3}",
        }
        for n in range(GOOD)
    ]
    for copy, original in (("again", 0), ("other words", 1)):
        shutil.copy(folder / f"{original}.flac", folder / f"{copy}.flac")
        text = rows[original]["text"] if copy == "again" else "three two 1"
        rows.append({"id": copy, "audio": f"{copy}.flac", "text": text})
    loud, low = np.clip(4 * tone(1.5, 150, seed=20), -0.9, 0.9), 1e-4 * tone(1.4, seed=21)
    opposite = np.stack([tone(1.3, seed=22), -tone(1.3, seed=22)], axis=1)
    telephone = np.stack([tone(1.25, 300, 8000, seed=23), tone(1.25, 400, 8000, seed=24)], axis=1)
    rows += [
        {"id": "clipped", "audio": write(folder, "clipped.flac", loud), "text": "two"},
        {"id": "silent", "audio": write(folder, "silent.flac", low), "text": "two"},
        {"id": "cancelled", "audio": write(folder, "cancelled.flac", opposite), "text": "two"},
        {"id": "telephone", "audio": write(folder, "telephone.wav", telephone, 8000), "text": "two", "language": "bn"},
        {"id": "typo", "audio": write(folder, "typo.flac", tone(1.65, seed=25)), "text": f"tw{CYRILLIC_O}"},
    ]
    (folder / "broken.flac").write_text("not audio at all")
    rows += [{"id": "broken", "audio": "broken.flac", "text": "two", "duration": 1.0}]
    rows += [{"id": f"absent{n}", "audio": f"absent{n}.flac", "text": "two"} for n in range(4)]
    rows += [{"id": "no text", "audio": "0.flac", "text": " "}]
    rows += [{"id": "long", "audio": write(folder, "long.flac", tone(5, seed=26)), "text": "two"}]
    write_rows(folder / "train.jsonl", rows)
    shutil.copy(folder / "2.flac", folder / "leak.flac")
    others = [write(folder, f"eval{n}.flac", tone(1.1, seed=30 + n)) for n in range(3)]
    write_rows(folder / "eval.jsonl", [{"id": name, "audio": name, "text": "one"} for name in ["leak.flac", *others]])
    return folder


def flags(folder: Path, checkpoint: Path, **settings: object) -> list[str]:
    given = {"model.model_name": checkpoint, "model.language": "English", "data.cache_dir": folder / "cache",
             "data.num_workers": 1, **settings}  # fmt: skip
    return [f"--{name}={value}" for name, value in given.items()]


@pytest.fixture(scope="module")
def deep(corpus: Path, tiny_checkpoint: Path) -> subprocess.CompletedProcess[str]:
    """The program with --json and --deep, as a user runs it."""
    train_and_eval = {"data.train_manifest": corpus / "train.jsonl", "data.eval_manifest": corpus / "eval.jsonl"}
    command = [
        sys.executable,
        "-m",
        "tools.check",
        "--json",
        "--deep",
        *flags(corpus, tiny_checkpoint, **train_and_eval),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def train(deep: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(deep.stdout)["corpora"][0]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """Runs `main` with these arguments: its exit code, and what it prints."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
        code = 0
        try:
            check.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().out

    return run


def names(found: dict) -> list[str]:
    return [example["id"] for example in found["examples"]]


def test_more_rejected_than_allowed_is_exit_code_1_and_the_report_is_printed_all_the_same(deep, train):
    assert deep.returncode == 1, deep.stderr
    assert "Traceback" not in deep.stderr
    assert (train["rows"], train["recordings"], train["rejected"]) == (26, 20, 6)
    assert train["rejected_fraction"] == pytest.approx(7 / 26)  # the broken file too, which the scan does not open
    assert train["too_many_rejected"]
    assert "--data.max_rejected_fraction" in json.loads(deep.stdout)["warnings"][1]


def test_rejected_rows_are_told_by_reason_with_three_examples_each(train):
    reasons = {each["reason"]: each for each in train["rejected_by_reason"]}
    assert {kind: each["count"] for kind, each in reasons.items()} == {
        "file not found": 4, "empty transcript": 1, "too long": 1,
    }  # fmt: skip
    assert names(reasons["file not found"]) == ["absent0", "absent1", "absent2"]
    assert reasons["too long"]["examples"][0]["reason"].startswith("too long: 5.00 s")
    assert len(Path(train["rejected_file"]).read_text().splitlines()) == 6


def test_what_passes_the_scan_and_fails_later_is_found(train):
    [failure] = train["failures"]
    assert (failure["reason"], failure["count"], names(failure)) == ("not readable as audio", 1, ["broken"])


def test_clipped_silent_and_cancelled_audio_is_found_and_nothing_else_is_taken_for_it(train):
    decoding = train["decoding"]
    assert {kind: names(decoding[kind]) for kind in ("clipped", "silent", "cancelled")} == {
        "clipped": ["clipped"], "silent": ["silent"], "cancelled": ["cancelled"],
    }  # fmt: skip
    assert (decoding["decoded"], decoding["all"]) == (20, True)


def test_duplicates_and_contradictions_are_found(train):
    assert train["duplicates"]["count"] == train["same_audio_other_transcript"]["count"] == 1
    [pair] = train["duplicates"]["examples"]
    assert (pair["first"]["id"], pair["again"]["id"]) == ("r0", "again")
    [pair] = train["same_audio_other_transcript"]["examples"]
    assert (pair["first"]["id"], pair["again"]["id"]) == ("r1", "other words")


def test_audio_in_train_and_eval_is_a_warning(deep):
    report = json.loads(deep.stdout)
    [shared] = report["shared_audio"]
    assert (shared["leak"], shared["count"]) == (True, 1)
    assert (shared["examples"][0]["in"]["id"], shared["examples"][0]["also_in"]["id"]) == ("leak.flac", "r2")
    assert "which is for evaluation" in report["warnings"][0]


def test_rare_characters_are_listed_with_their_name_and_an_example(train):
    characters = {each["name"]: each for each in train["characters"]["listed"]}
    found = characters["cyrillic small letter o"]
    assert (found["code"], found["recordings"], found["example"]["id"]) == ("U+043E", 1, "typo")
    assert "latin small letter o" not in characters


def test_hours_durations_formats_languages_and_labels_are_counted(train):
    durations = [1 + n / 10 for n in range(GOOD)] + [1.0, 1.1, 1.5, 1.4, 1.3, 1.25, 1.65]
    assert train["hours"] == pytest.approx(sum(durations) / 3600, rel=1e-4)
    assert train["duration_s"]["max"] == pytest.approx(2.1)
    assert sum(bar["recordings"] for bar in train["duration_histogram"]) == 19
    assert [bar["recordings"] for bar in train["duration_histogram"] if bar["from_s"] == 2] == [2]
    assert [each["id"] for each in train["longest"][:3]] == ["r11", "r10", "r9"]
    assert len(train["longest"]) == len(train["shortest"]) == 10
    formats = {(each["sampling_rate_hz"], each["channels"]): each["recordings"] for each in train["audio_formats"]}
    assert formats == {(16000, 1): 17, (16000, 2): 1, (8000, 2): 1}
    languages = {each["language"]: each["recordings"] for each in train["languages"]}
    assert languages == {"English": 19, "bn": 1}
    assert 0 < train["label_tokens"]["min"] <= train["label_tokens"]["max"] <= train["label_tokens"]["limit"]


def test_an_epoch_is_all_variants_of_all_recordings(program, corpus, tiny_checkpoint):
    code, out = program(corpus / "train.jsonl", "--json", "--samples_per_second", 4,
                        *flags(corpus, tiny_checkpoint), "--data.augmented_copies=2")  # fmt: skip
    [found] = json.loads(out)["corpora"]
    assert code == 1
    assert (found["epoch"]["samples"], found["epoch"]["lasts_s"], found["epoch"]["all_epochs_last_s"]) == (60, 15, 75)


def test_the_text_names_everything_and_says_what_to_do(program, corpus, tiny_checkpoint):
    code, out = program(corpus / "train.jsonl", "--data.eval_manifest", corpus / "eval.jsonl",
                        *flags(corpus, tiny_checkpoint), "--data.max_rejected_fraction=0.5")  # fmt: skip
    assert code == 0
    for part in (
        "train.jsonl, for training", "eval.jsonl, for evaluation", "4 × file not found", "cyrillic small letter o",
        "  8,000 Hz   2 channels", "1 with the same transcript", "Redis: ", "an epoch: 40 samples", "What to do:",
        "which is for evaluation", "at most one of the two is right", "Leave them out",
    ):  # fmt: skip
        assert part in out
    assert max(map(len, out[out.index("What to do:") :].splitlines())) <= 120


def test_without_deep_a_sample_is_decoded_and_the_report_says_so(program, corpus, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(survey, "DECODED_SAMPLE", 5)
    arguments = [corpus / "eval.jsonl", corpus / "train.jsonl", *flags(corpus, tiny_checkpoint)]
    _, out = program(*arguments)
    assert "Decoded: a sample of 5; --deep decodes all" in out
    assert "they are trained twice" in out.replace("\n    ", " ")  # both are for training here
    _, out = program(*arguments, "--deep", "--json")
    assert [each["decoding"]["decoded"] for each in json.loads(out)["corpora"]] == [4, 20]


def test_clean_corpora_empty_ones_and_wrong_durations_are_told_apart(program, tmp_path, tiny_checkpoint):
    names = [write(tmp_path, f"{n}.flac", tone(1, seed=n)) for n in range(4)]
    manifests = [
        write_rows(tmp_path / "clean.jsonl", [{"audio": name, "text": "one two"} for name in names[:3]]),
        write_rows(tmp_path / "gone.jsonl", [{"audio": f"gone{n}.flac", "text": "one"} for n in range(5)]),
        write_rows(tmp_path / "wrong.jsonl", [{"audio": names[3], "text": "one", "duration": 2.0}]),
    ]
    code, out = program(*manifests, "--json", *flags(tmp_path, tiny_checkpoint), "--data.max_rejected_fraction=1")
    report = json.loads(out)
    assert code == 1  # there is nothing to train in one of them, whatever is allowed
    assert [corpus["too_many_rejected"] for corpus in report["corpora"]] == [False, True, False]
    gone, wrong = report["warnings"]
    assert "100.0 % of" in gone
    assert "correct the column duration" in wrong
    clean = describe({"corpora": report["corpora"][:1], "shared_audio": [], "warnings": []})
    assert clean.rstrip().endswith("Nothing to mend was found.")
    assert "5 × file not found" in describe(report)


def test_mistakes_are_told_before_anything_is_loaded(program, tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest at .*absent\.csv"):
        program(tmp_path / "absent.csv", "--model.model_name=there-is-no-such-model")
    assert program("--samples_per_second", 0)[0] == 2
    code, shown = program("--help")
    assert code == 0
    for flag in ("--json", "--deep", "--samples_per_second", "--data.max_rejected_fraction", "MANIFEST"):
        assert flag in shown


def test_many_ranges_add_up_to_one_survey(load, tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(survey, "RECORDINGS_PER_TASK", 16)
    audio = write(tmp_path, "a.flac", tone(1))
    rows = [
        {"audio": audio, "text": "one" if n < 30 else "zwei", "language": "de" if n >= 30 else ""} for n in range(50)
    ]
    recordings = load(write_rows(tmp_path / "train.jsonl", rows))
    spec, model = load_feature_spec(str(tiny_checkpoint)), ModelConfig(model_name=str(tiny_checkpoint), language="")
    encoder = load_transcript_encoder(model)
    with survey.start_surveyors(DataConfig(), spec, encoder, processes=2, deep=False) as surveyors:
        found = survey.survey_recordings(recordings, surveyors, 2)
    assert found.languages == [("", ""), ("de", "")]
    assert found.rows["language"].tolist() == [0] * 30 + [1] * 20
    assert (found.characters["o"], found.characters["z"], found.first_seen["z"]) == (30, 20, 30)
    assert len(set(found.rows["audio"].tolist())) == 1
    assert found.rows["duration_s"].tolist() == [1.0] * 50
    assert (found.decoded, find_repeats(found.rows)[0].count) == (50, 48)
    assert surveyor._surveyor is None  # only worker processes have one


def test_the_redis_that_a_recording_takes_is_that_of_its_sample(load, tiny_checkpoint):
    recordings = load(DIGITS / "eval")
    spec = load_feature_spec(str(tiny_checkpoint))
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))
    found = Surveyor(DataConfig(), spec, encoder, deep=False).survey(recordings, 0, 10, frozenset())
    settings = SampleSettings(spec, encoder, DataConfig(), "float16", 32 * "f")
    sizes = [allocated(len(encode_sample(make_sample(recordings[n], n, settings)))) for n in range(10)]
    assert found.rows["queue"].tolist() == pytest.approx(sizes, rel=0.002)


def test_speech_is_not_clipped_until_it_is():
    speech = soundfile.read(DIGITS / "train" / "0000.ogg", dtype="float32")[0]
    speech /= np.abs(speech).max()
    clipped = np.clip(3 * speech, -1, 1)
    assert not is_clipped(speech)
    assert is_clipped(clipped)
    assert is_clipped(0.2 * clipped)  # the level was lowered afterwards
    assert is_clipped(np.maximum(-0.3, speech) - 0.2)  # on one side, with an offset
    assert not is_silent(0.01 * speech)
    assert is_silent(0.0005 * speech)
    assert is_silent(np.zeros(0, np.float32))


def test_audio_that_was_not_looked_at_is_no_duplicate():
    rows = np.zeros(6, ROW)
    rows["audio"] = [0, 7, 0, 7, 7, 5]
    rows["transcript"] = [1, 1, 1, 2, 1, 3]
    same, contradicting = find_repeats(rows)
    assert (same.count, same.examples) == (1, [(1, 4)])
    assert contradicting.count == 1
    assert find_shared(rows[5:], rows[:5]).count == 0
    assert find_shared(rows[:3], rows[3:]).examples == [(0, 1)]
    assert find_repeats(rows[:0])[0].count == find_shared(rows[:0], rows).count == 0


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("too long: 31.00 s, the limit is 30 s", "too long"),
        ("duration 'x' is not a number of seconds", "duration '…' is not a number of seconds"),
        ("duration 'it''s' is not a number", "duration '…' is not a number"),
        ("empty transcript", "empty transcript"),
    ],
)
def test_reasons_are_grouped_without_their_details(reason, kind):
    assert kind_of(reason) == kind
