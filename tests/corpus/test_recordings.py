"""Manifests in every form become usable recordings; every other row is in the rejected report with its reason."""

from __future__ import annotations

import csv
import json
import os
import pickle
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from config import DataConfig, ModelConfig
from corpus.manifest import ManifestError
from corpus.recordings import Recordings
from corpus.rejected_report import LateRejection, LateRejections, TooManyRejectedError, check_rejected, write_report
from corpus.scan import _Scanner, load_recordings
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from tests.test_data_processor import write_bad_recordings


@pytest.fixture
def load(tiny_checkpoint, tmp_path):
    """Loads a manifest; settings of DataConfig as keywords."""
    spec = load_feature_spec(str(tiny_checkpoint))
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))

    def _load(path: Path, processes: int = 0, **settings) -> Recordings:
        data = DataConfig(cache_dir=str(tmp_path / "cache"), **settings)
        report = tmp_path / "out" / "rejected.jsonl"
        return load_recordings(str(path), data, spec, encoder, report=report, processes=processes)

    return _load


def report_of(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("audio", "text"), [("audio", "text"), ("file_name", "transcription"), ("path", "sentence"), ("wav", "label")]
)
def test_usual_column_names_are_found_and_others_can_be_named(load, write_recording, write_manifest, audio, text):
    manifest = write_manifest([{audio: write_recording("clips/a.wav").relative_to(manifest_folder(write_recording))
                                , text: "one two", "other": 1}])  # fmt: skip
    named = {"audio_column": "wav", "text_column": "label"} if audio == "wav" else {}
    recordings = load(manifest, **named)
    assert recordings[0].audio == str(manifest.parent / "clips" / "a.wav")
    assert recordings[0].transcript == "one two"
    assert recordings[0].id == "clips/a.wav"


def manifest_folder(write_recording) -> Path:
    return write_recording("a.wav").parent


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "metadata.csv", "metadata.jsonl"])
def test_every_kind_of_manifest_is_read(load, write_recording, tmp_path, name):
    rows = [{"audio": write_recording(f"{i}.flac").name, "text": f'{i} "zwei", ক', "id": f"id{i}"} for i in range(3)]
    path = tmp_path / name
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith("tsv"):
        path.write_text("\n".join("\t".join(values) for values in [list(rows[0]), *(r.values() for r in rows)]) + "\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    recordings = load(tmp_path if name.startswith("metadata") else path)
    assert [(r.row, r.id, r.transcript) for r in map(recordings.__getitem__, range(3))] == [
        (i, f"id{i}", f'{i} "zwei", ক') for i in range(3)
    ]


def test_transcripts_that_look_like_numbers_or_missing_values_stay_text(load, write_recording, write_manifest):
    texts = ["1984", "null", "NA", "007", "True", "1e5"]
    manifest = write_manifest([{"audio": write_recording("a.wav").name, "text": text} for text in texts])
    recordings = load(manifest)
    assert [recordings[i].transcript for i in range(len(texts))] == texts


def test_a_byte_order_mark_does_not_hide_the_first_column(load, write_recording, tmp_path):
    write_recording("a.wav")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbfaudio,text\r\na.wav,one\r\n")
    assert len(load(tmp_path / "bom.csv")) == 1


def test_each_bad_row_is_reported_with_its_reason_and_the_rest_goes_on(load, write_recording, write_manifest, tmp_path):
    write_bad_recordings(tmp_path)
    good = write_recording("good ' \" ক.flac").name
    reasons = {
        "absent.wav": "file not found",
        "long.flac": "too long: 31.00 s",
        "none.wav": "too short",
        "one.wav": "too short",
        "empty.wav": "empty file",
        "text.wav": "not readable as audio",
        "folder.wav": "a folder",
    }
    rows = [{"audio": name, "text": "one"} for name in reasons]
    rows += [{"audio": good, "text": " "}, {"audio": "", "text": "one"}, {"audio": good, "text": "zqx " * 500}]
    rows += [{"audio": good, "text": "one"}] * 10
    recordings = load(write_manifest(rows), max_rejected_fraction=0.6)
    assert len(recordings) == 10
    assert recordings.rejected == 10
    report = report_of(tmp_path)
    assert [line["row"] for line in report] == list(range(10))
    for line, reason in zip(
        report, [*reasons.values(), "empty transcript", "no audio file", "transcript too long"], strict=True
    ):
        assert line["reason"].startswith(reason)
    assert report[0]["audio"] == "absent.wav"


def test_the_manifests_duration_is_believed_without_reading_the_file(load, write_manifest, tmp_path):
    (tmp_path / "unread.wav").write_bytes(b"not looked at yet")
    rows = [
        {"audio": "unread.wav", "text": "one", "duration": seconds} for seconds in ("2.5", "1", "31", "inf", "x", "0")
    ]
    recordings = load(write_manifest(rows), max_rejected_fraction=0.9)
    assert len(recordings) == 2
    assert recordings.hours == pytest.approx(3.5 / 3600)
    assert [line["reason"].split(":")[0] for line in report_of(tmp_path)] == [
        "too long", "duration 'inf' is not a number of seconds", "duration 'x' is not a number of seconds", "too short",
    ]  # fmt: skip


def test_too_many_bad_rows_stop_the_run_and_are_still_reported(load, write_recording, write_manifest, tmp_path):
    rows = [{"audio": write_recording("a.wav").name, "text": "one"}] * 9 + [{"audio": "absent.wav", "text": "one"}]
    with pytest.raises(TooManyRejectedError, match=r"1 of 10 rows \(10.0 %\).*1 × file not found.*0\.05"):
        load(write_manifest(rows))
    assert report_of(tmp_path)[0]["audio"] == "absent.wav"
    assert len(load(write_manifest(rows), max_rejected_fraction=0.1)) == 9


def test_a_manifest_without_any_usable_row_is_refused_whatever_is_allowed(load, write_manifest):
    with pytest.raises(TooManyRejectedError):
        load(write_manifest([{"audio": "absent.wav", "text": "one"}]), max_rejected_fraction=1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("audio,speech\na.wav,one\n", r"no column text or transcription.*it has audio, speech.*--data.text_column"),
        ("sound,text\na.wav,one\n", r"no column audio or file_name.*--data.audio_column"),
        ("audio,text\n", "holds no rows"),
        ("", "holds no rows"),
        ("audio,text\na.wav,one,two,three\n", "cannot read"),
    ],
)
def test_a_manifest_that_cannot_work_is_refused_with_the_remedy(load, tmp_path, content, message):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(ManifestError, match=message):
        load(tmp_path / "train.csv")


def test_a_manifest_that_is_not_there_or_not_utf8_or_no_manifest_is_refused(load, tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest at .*--data.train_manifest"):
        load(tmp_path / "absent.csv")
    with pytest.raises(ManifestError, match=r"the folder holds none of: .*metadata\.csv"):
        load(tmp_path)
    (tmp_path / "latin.csv").write_bytes("audio,täxt\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        load(tmp_path / "latin.csv")
    (tmp_path / "train.xlsx").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"is no corpus, it is none of: .*a \.csv, \.tsv or \.jsonl"):
        load(tmp_path / "train.xlsx")


def test_processes_and_a_second_start_find_the_same_recordings(load, write_recording, write_manifest):
    name = write_recording("a.wav").name
    rows = [{"audio": name if i % 50 else "absent.wav", "text": f"text {i}"} for i in range(5000)]
    manifest = write_manifest(rows)
    scanned = load(manifest, processes=2)
    cached = load(manifest)
    manifest.parent.joinpath("cache").rename(manifest.parent / "old cache")
    alone = load(manifest)
    assert scanned.digest == cached.digest == alone.digest
    assert len(scanned) == 4900
    for index in (0, 1, 2500, 4899):
        assert scanned[index] == cached[index] == alone[index] == pickle.loads(pickle.dumps(scanned))[index]
    assert scanned[4899].row == 4999


@pytest.mark.parametrize("processes", [0, 1])
def test_a_rejected_file_that_has_been_repaired_is_used_from_the_next_start_on(
    load, write_recording, write_manifest, tmp_path, processes
):
    write_recording("a.wav")
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    names = ["a.wav", "broken.wav", "absent.wav", "a.wav"]
    manifest = write_manifest([{"audio": name, "text": "one" * (n < 3)} for n, name in enumerate(names)])
    first = load(manifest, processes, max_rejected_fraction=0.8)
    scanned = first.rejected_file.stat().st_ino
    again = load(manifest, processes, max_rejected_fraction=0.8)
    assert (again.digest, again.rejected_file.stat().st_ino) == (first.digest, scanned)  # not scanned again
    write_recording("broken.wav")
    repaired = load(manifest, processes, max_rejected_fraction=0.8)
    assert [repaired[i].row for i in range(len(repaired))] == [0, 1]
    assert repaired.digest != first.digest
    assert first[0].row == 0  # who has the earlier result open can still read it
    assert [line["row"] for line in report_of(tmp_path)] == [2, 3]
    write_recording("absent.wav")
    assert len(load(manifest, processes, max_rejected_fraction=0.8)) == 3


def test_a_task_that_raises_a_time_out_of_its_own_is_not_waited_for_again(monkeypatch):
    """Not even when it ends between the end of a wait and the look whether it is done."""
    scanner = _Scanner(None, None, None, None, 0, lambda: None)
    monkeypatch.setattr("corpus.scan.HEARTBEAT_S", 0.0)
    future: Future[int] = Future()
    threading.Timer(0.05, lambda: future.set_result(3)).start()
    assert scanner.wait(future) == 3
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("of the task"))
    with pytest.raises(TimeoutError, match="of the task"):
        scanner.wait(failed)


def test_a_manifest_that_may_not_be_read_is_said_to_be_unreadable(load, tmp_path):
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    with pytest.raises(ManifestError, match="no manifest at"):
        load(tmp_path / "loop.csv")
    (tmp_path / "unreadable.csv").symlink_to("/proc/self/mem")  # reading it fails, whoever the user is
    with pytest.raises(ManifestError, match=r"cannot read .*unreadable\.csv: Input/output error"):
        load(tmp_path / "unreadable.csv")
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(ManifestError, match=r"train\.csv is a pipe or a device"):
        load(tmp_path / "train.csv")


def test_a_changed_manifest_is_scanned_anew(load, write_recording, write_manifest):
    name = write_recording("a.wav").name
    first = load(write_manifest([{"audio": name, "text": "one"}])).digest
    assert load(write_manifest([{"audio": name, "text": "two"}])).digest != first


def test_late_rejections_join_the_report_once_and_survive_a_new_start(tmp_path):
    scanned, report = tmp_path / "scanned.jsonl", tmp_path / "out" / "rejected.jsonl"
    scanned.write_text('{"row": 0, "id": "a", "audio": "a.wav", "reason": "file not found"}\n')
    write_report(report, scanned)
    lines = [LateRejection(5, "f", "f.wav", "truncated", position, "plan").to_json() for position in (8, 9)]
    late = LateRejections(report, "plan")
    late.add(lines)
    late.add(lines)
    assert late.rows == 1
    write_report(report, scanned)
    again = LateRejections(report, "plan")
    again.add(lines)
    assert again.rows == 1
    assert [line["row"] for line in report_of(tmp_path)] == [0, 5, 5]
    assert LateRejections(report, "another plan").rows == 0


@pytest.mark.parametrize(("rejected", "rows", "fine"), [(0, 1, True), (5, 100, True), (6, 100, False), (3, 3, False)])
def test_the_limit_on_rejected_rows(rejected, rows, fine):
    if fine:
        check_rejected(rejected, rows, 0.05, "train.csv", Path("rejected.jsonl"))
    else:
        with pytest.raises(TooManyRejectedError):
            check_rejected(rejected, rows, 0.05, "train.csv", Path("rejected.jsonl"))
