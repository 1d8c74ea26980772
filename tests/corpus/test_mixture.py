"""A mixture file names several corpora: they become one table, whose recordings are called after their corpus."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from config import Config, DataConfig
from corpus.formats import find_manifest
from corpus.manifest import ManifestError
from corpus.rejected_report import TooManyRejectedError
from features.sample import SampleLimits, decode_sample
from producing.plan import Shares, make_plan
from producing.producer_report import Tally
from producing.worker_pool import SampleMaker


@pytest.fixture
def folder(write_recording, write_manifest, tmp_path) -> Path:
    """Folders bn (4 recordings in CSV) and en (6 in JSON lines, 2 of them translated), and a file mixture.yaml."""
    for number in range(4):
        write_recording(f"bn/{number}.wav")
    write_manifest([{"audio": f"{n}.wav", "text": f"one {n}", "id": f"b{n}"} for n in range(4)], "bn/train.csv")
    for number in range(6):
        write_recording(f"en/clips/{number}.wav")
    rows = [{"path": f"clips/{n}.wav", "said": f"two {n}", "task": "translate" if n < 2 else ""} for n in range(6)]
    (tmp_path / "en" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_mixture(tmp_path)
    return tmp_path


def write_mixture(folder: Path, weight: object = 0.5, more: str = "") -> Path:
    path = folder / "mixture.yaml"
    path.write_text(
        f"- manifest: bn/train.csv\n  name: bn\n  language: Bengali\n"
        f"- {{manifest: en/train.jsonl, name: en, weight: {weight}, text_column: said, language: no}}\n{more}"
    )
    return path


def test_recordings_of_all_corpora_follow_each_other_under_the_names_of_their_corpora(load, folder):
    recordings = load(folder / "mixture.yaml")
    assert [recordings[i].id for i in range(10)] == [f"bn/b{n}" for n in range(4)] + [
        f"en/clips/{n}.wav" for n in range(6)
    ]
    assert [recordings[i].corpus for i in (0, 3, 4, 9)] == ["bn", "bn", "en", "en"]
    assert recordings[9].audio == str(folder / "en" / "clips" / "5.wav")
    assert {(each.language, each.task) for each in map(recordings.__getitem__, range(10))} == {
        ("Bengali", ""), ("no", "translate"), ("no", ""),
    }  # fmt: skip
    assert [(each.name, each.recordings, each.weight) for each in recordings.corpora] == [("bn", 4, 1), ("en", 6, 0.5)]


def test_a_corpus_in_parquet_is_unpacked_and_its_columns_are_found(load, folder):
    audio = [(folder / "bn" / f"{n}.wav").read_bytes() for n in range(4)]
    table = pyarrow.table({"audio": audio, "text": ["one"] * 4, "language": ["en", "", "bn", "en"]})
    pyarrow.parquet.write_table(table, folder / "train.parquet", row_group_size=2)
    recordings = load(
        write_mixture(folder, more="- {manifest: train.parquet, name: inside, language: de}\n"), processes=1
    )
    assert [recordings[i].language for i in range(10, 14)] == ["en", "de", "bn", "en"]
    assert Path(recordings[13].audio.partition("#")[0]) == folder / "train.parquet"
    with pytest.raises(ManifestError, match=r"corpus inside: data\.streaming is for one data set"):
        load(folder / "mixture.yaml", streaming=True, streaming_cache_gb=0.1)


def test_another_weight_needs_no_other_scan_and_makes_another_plan(load, folder):
    plans = [make_plan(Config(), load(write_mixture(folder, weight))) for weight in (1, 0.5, 2)]
    assert [plan.shares for plan in plans] == [None, Shares((4, 6), (1.0, 0.5)), Shares((4, 6), (1.0, 2.0))]
    assert [plan.samples_per_epoch for plan in plans] == [20, 14, 32]
    assert len(list((folder / "cache" / "scans").iterdir())) == 1


def test_the_same_tree_elsewhere_is_the_same_content(load, folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, copy)
    link = copy.parent / "link"
    link.symlink_to(copy)
    first = load(folder / "mixture.yaml")
    for moved in (copy, link):
        again = load(moved / "mixture.yaml")
        assert again.digest == first.digest
        assert Path(again[9].audio) == copy / "en" / "clips" / "5.wav"


def test_a_corpus_may_lie_outside_of_the_mixtures_folder_behind_a_link(load, folder):
    inner = folder / "settings" / "inner"
    inner.mkdir(parents=True)
    (folder / "link").symlink_to(inner)
    (inner / "mix.yml").write_text("- manifest: ../../bn/train.csv\n")
    recordings = load(folder / "link" / "mix.yml")
    assert recordings[0].id == "train/b0"
    assert Path(recordings[0].audio).resolve() == folder / "bn" / "0.wav"


def test_a_corpus_most_of_which_is_missing_is_refused_even_when_the_others_are_large(load, folder):
    shutil.rmtree(folder / "en" / "clips")
    with pytest.raises(TooManyRejectedError, match=r"6 of 6 rows .* corpus en can't be used"):
        load(folder / "mixture.yaml", max_rejected_fraction=0.7)


def test_a_language_that_the_model_does_not_know_is_rejected_by_its_name(load, folder):
    write_mixture(folder, more="- {manifest: bn/train.csv, name: x, language: Klingon}\n")
    with pytest.raises(TooManyRejectedError, match=r"4 × unknown language 'Klingon'"):
        load(folder / "mixture.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"cannot read .*mixture\.yaml as YAML: .*line 1"),
        ("manifest: bn/train.csv", "no mixture of corpora: expected a list"),
        ("", "no mixture of corpora: expected a list"),
        ("- bn/train.csv", "entry 1 is 'bn/train.csv': expected manifest: PATH"),
        ("- name: a", "entry 1 names no manifest"),
        ("- {manifest: bn/train.csv, wieght: 2}", "entry 1 has a key 'wieght': expected some of manifest, name"),
        ("- {manifest: bn/train.csv, weight: 0}", r"entry 1 \(train\): weight is '0': expected a number above 0"),
        ("- {manifest: bn/train.csv, weight: much}", r"entry 1 \(train\): weight is 'much'"),
        ("- {manifest: bn/train.csv, task: write}", r"entry 1 \(train\): task is 'write': expected transcribe"),
        ("- {manifest: bn/train.csv, name: a/b}", "entry 1: name is 'a/b'"),
        ("- {manifest: [bn/train.csv]}", "entry 1: manifest is .*: expected a single value"),
        ("- {manifest: bn/train.csv}\n- {manifest: en/train.csv}", "entry 2: a second corpus called 'train'"),
        ("- {manifest: mixture.yaml}", "is a mixture itself"),
        ("- {manifest: bn/train.csv}\n- {manifest: no.csv, name: b}", r"entry 2 \(b\): no manifest at .*/no\.csv"),
        ("- {manifest: bn/train.csv, format: x}", r"entry 1 \(train\): data.format is 'x': expected one of "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_mixture_file_is_told_at_once_in_one_line_with_its_entry(folder, text, message):
    (folder / "mixture.yaml").write_text(text)
    with pytest.raises(ManifestError, match=message) as caught:
        find_manifest(str(folder / "mixture.yaml"))
    assert "\n" not in str(caught.value)


def test_samples_carry_the_name_of_their_corpus_and_the_tokens_of_their_language_and_the_report_counts_both(
    recipe_of, folder
):
    recipe = recipe_of(folder / "mixture.yaml", epochs=2)
    ids = {
        token: recipe.encoder._tokenizer.token_to_id(f"<|{token}|>")
        for token in ("bn", "no", "transcribe", "translate")
    }
    maker, tally, counts = SampleMaker(recipe), Tally(), {"bn": 0, "en": 0}
    chunk = maker.make_chunk(0, len(recipe.plan))
    limits = SampleLimits(recipe.spec.num_mel_bins, recipe.spec.window_frames, 449, 10**6)
    for position, payload in enumerate(chunk.payloads):
        sample = decode_sample(payload, key="", position=position, plan=recipe.fingerprint, limits=limits)
        corpus, _, name = sample.id.partition("/")
        counts[corpus] += 1
        translated = name in ("clips/0.wav", "clips/1.wav")
        expected = [ids["bn" if corpus == "bn" else "no"], ids["translate" if translated else "transcribe"]]
        assert sample.labels[1:3].tolist() == expected
    assert counts == chunk.corpora == {"bn": 16, "en": 12}  # 2 epochs x 2 variants x (4, half of 6)
    tally.add(chunk)
    report = tally.report(0, 0, 0.0, 0, folder)
    assert re.search(r"16 of corpus bn\n +12 of corpus en\n", report)


def test_a_corpus_of_its_own_names_no_corpus(recipe_of, folder):
    recipe = recipe_of(folder / "bn" / "train.csv")
    chunk = SampleMaker(recipe).make_chunk(0, 2)
    assert not chunk.corpora
    assert recipe.recordings[0].id == "b0"
    assert make_plan(Config(data=DataConfig()), recipe.recordings).shares is None
