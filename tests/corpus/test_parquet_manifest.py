"""Data sets in Parquet become usable recordings, with the same samples as the same audio in files."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from audio.audio_file import RecordingError
from audio.waveform import load_waveform
from common.errors import ConfigurationError
from config import DataConfig
from corpus.manifest import ManifestError
from corpus.parquet_manifest import open_parquet
from corpus.rejected_report import TooManyRejectedError
from features.feature_spec import FeatureSpec
from features.sample import SampleLimits, decode_sample
from producing.recipe import StreamRecipe
from producing.worker_pool import SampleMaker
from storage.remote_files import SourceError
from storage.row_group_cache import RowPlace, parse_locator, read_metadata, read_value, unpacked_path
from tests.conftest import tone
from tests.producing.test_worker_pool import stream

FORMATS = [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("WAV", "PCM_16"), ("OGG", "OPUS")]
AUDIO_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(number: int, duration_s: float | None = None) -> bytes:
    """A file of one of the formats in turn, as bytes."""
    file = io.BytesIO()
    container, subtype = FORMATS[number % len(FORMATS)]
    waveform = tone(duration_s or 1 + number / 20, 300 + 20 * number)
    soundfile.write(file, waveform, 16000, format=container, subtype=subtype)
    return file.getvalue()


def example_rows(count: int = 12) -> list[dict]:
    return [
        {"audio": {"bytes": encoded(n), "path": f"clip{n}.x"}, "text": f"text {n}", "speaker": n} for n in range(count)
    ]


def write_shards(folder: Path, rows: list[dict], shards: int = 2, group_rows: int = 3, schema=None) -> Path:
    """Writes rows as the Hub names its files. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for number in range(shards):
        table = pa.Table.from_pylist(rows[number * size : (number + 1) * size], schema=schema)
        pq.write_table(table, folder / f"train-{number:05}-of-{shards:05}.parquet", row_group_size=group_rows)
    return folder


def data_of(recipe: StreamRecipe) -> list[tuple[str, bytes]]:
    """Id and features of each sample of the stream."""
    samples = []
    for position, payload in enumerate(SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads):
        limits = SampleLimits(num_mel_bins=80, window_frames=400, max_tokens=449, vocabulary=51866)
        sample = decode_sample(payload, key="k", position=position, plan=recipe.fingerprint, limits=limits)
        samples.append((sample.id, sample.input_features.tobytes()))
    return samples


def write_files(folder: Path, rows: list[dict]) -> Path:
    """The same data set as files, with the ids that Parquet's rows get."""
    folder.mkdir()
    lines = []
    for row in rows:
        (folder / row["audio"]["path"]).write_bytes(row["audio"]["bytes"])
        lines.append(json.dumps({"audio": row["audio"]["path"], "text": row["text"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def report_of(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("form", ["folder", "file", "pattern", "hub"])
def test_every_way_to_name_a_data_set_finds_its_rows(load, tmp_path, form):
    folder = write_shards(tmp_path / "repo" / "data", example_rows(), shards=1 if form == "file" else 2)
    named = {
        "folder": folder,
        "file": folder / "train-00000-of-00001.parquet",
        "pattern": folder / "train-*.parquet",
        "hub": f"hf://{tmp_path / 'repo'}:train",
    }[form]
    recordings = load(named)
    assert [recordings[i].id for i in range(12)] == [f"clip{n}.x" for n in range(12)]
    assert [recordings[i].transcript for i in range(12)] == [f"text {n}" for n in range(12)]
    assert [recordings[i].row for i in range(12)] == list(range(12))
    assert recordings.hours == pytest.approx(sum(1 + n / 20 for n in range(12)) / 3600, rel=0.01)


def test_the_stream_from_parquet_has_the_samples_of_the_stream_from_files(recipe_of, tmp_path):
    rows = example_rows()
    parquet = recipe_of(write_shards(tmp_path / "parquet", rows), epochs=2)
    files = recipe_of(write_files(tmp_path / "files", rows), epochs=2)
    assert data_of(parquet) == data_of(files)


def test_worker_processes_make_the_same_bytes_as_this_one_streamed_or_not(recipe_of, tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows())
    for streaming in (False, True):
        recipe = recipe_of(folder, epochs=2, streaming=streaming)
        alone = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
        shutil.rmtree(tmp_path / "cache" / ("streamed" if streaming else "unpacked"))
        assert stream(recipe, 2) == alone


def test_streaming_keeps_the_samples_changes_the_order_and_leaves_the_epoch_complete(recipe_of, tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows())
    whole, streamed = recipe_of(folder, epochs=2), recipe_of(folder, epochs=2, streaming=True)
    assert whole.fingerprint != streamed.fingerprint
    for epoch in range(2):
        begin, end = 24 * epoch, 24 * (epoch + 1)
        assert sorted(s[0] for s in data_of(whole)[begin:end]) == sorted(s[0] for s in data_of(streamed)[begin:end])
    assert [s[0] for s in data_of(whole)] != [s[0] for s in data_of(streamed)]


def test_a_streamed_data_set_takes_no_more_disk_than_allowed_and_reads_each_row_group_once(recipe_of, tmp_path):
    rows = [{"audio": {"bytes": encoded(5 * n, 3.0), "path": None}, "text": f"{n}"} for n in range(60)]
    folder = write_shards(tmp_path / "parquet", rows, shards=1, group_rows=2)
    size = sum(len(row["audio"]["bytes"]) for row in rows)
    limit = size // 3
    recipe = recipe_of(folder, epochs=1, num_workers=1, streaming=True, streaming_cache_gb=limit / 2**30)
    streamed = tmp_path / "cache" / "streamed"
    shutil.rmtree(streamed)
    seen, made, largest = set(), 0, 0
    maker = SampleMaker(recipe)
    for position in range(len(recipe.plan)):
        maker.make_chunk(position, position + 1)
        files = {path for path in streamed.iterdir() if path.is_file()}
        made += len(files - seen)
        seen = files
        largest = max(largest, sum(path.stat().st_size for path in files))
    assert made == 30
    assert size / 6 < largest <= limit


def test_a_data_set_that_does_not_fit_is_refused_with_the_figures_and_the_remedies(load, tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows())
    data = DataConfig(cache_dir=str(tmp_path / "cache"))
    table = open_parquet(str(folder), data).index(data)
    huge = table.groups.copy()
    huge[:, 3] = 2**50
    with pytest.raises(ManifestError, match=r"takes 4194304\.00 GB .* GB free.*cache_dir, or .*--data.streaming True"):
        dataclasses.replace(table, groups=huge).check_space()
    with pytest.raises(ManifestError, match=r"must hold 6 of them: set it to 0\.00.*smaller row groups"):
        load(folder, streaming=True, streaming_cache_gb=1e-6, num_workers=3)


def test_what_is_unpacked_already_needs_no_room(tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows())
    data = DataConfig(cache_dir=str(tmp_path / "cache"))
    table = open_parquet(str(folder), data).index(data)
    before = table._bytes_to_unpack()
    list(table.read(0, 3))
    assert 0 < table._bytes_to_unpack() < before
    list(table.read(0, 12))
    assert table._bytes_to_unpack() == 0


def test_an_unpacked_row_group_that_is_deleted_comes_back(recipe_of, tmp_path):
    recipe = recipe_of(write_shards(tmp_path / "parquet", example_rows()))
    before = SampleMaker(recipe).make_chunk(0, 20).payloads
    shutil.rmtree(tmp_path / "cache" / "unpacked")
    assert SampleMaker(recipe).make_chunk(0, 20).payloads == before


def test_a_moved_data_set_makes_the_same_stream_and_a_changed_one_another(recipe_of, tmp_path):
    rows = example_rows()
    folder = write_shards(tmp_path / "parquet", rows)
    first = recipe_of(folder)
    shutil.copytree(folder, tmp_path / "moved" / "parquet")
    assert (
        recipe_of(tmp_path / "moved" / "parquet", cache_dir=str(tmp_path / "cache2")).fingerprint == first.fingerprint
    )
    rows[3]["audio"]["bytes"] = encoded(7)
    write_shards(folder, rows)
    assert recipe_of(folder).fingerprint != first.fingerprint


def test_a_data_set_that_changes_under_a_run_stops_it(recipe_of, tmp_path):
    rows = example_rows()
    recipe = recipe_of(write_shards(tmp_path / "parquet", rows), streaming=True)
    rows[3]["audio"]["bytes"] = encoded(7)
    write_shards(tmp_path / "parquet", rows)
    shutil.rmtree(tmp_path / "cache" / "streamed")
    read_metadata.cache_clear()
    with pytest.raises(SourceError, match="changed since it was scanned"):
        SampleMaker(recipe).make_chunk(0, len(recipe.plan))
    shutil.rmtree(tmp_path / "parquet")
    with pytest.raises(SourceError, match="is gone"):
        SampleMaker(recipe).make_chunk(0, len(recipe.plan))


def test_bad_rows_are_reported_with_their_reasons(load, tmp_path):
    rows = example_rows(20)
    for number, value in enumerate([b"not audio", b"", encoded(0, 31.0), encoded(0, 0.01)]):
        rows[number]["audio"]["bytes"] = value
    rows[4]["audio"] = {"bytes": None, "path": None}
    rows[5]["audio"] = None
    rows[6]["text"] = None
    rows[7]["audio"]["path"] = None
    recordings = load(write_shards(tmp_path / "parquet", rows), max_rejected_fraction=0.5)
    report = report_of(tmp_path)
    assert [line["row"] for line in report] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["reason"].partition(":")[0] for line in report] == [
        "not readable as audio", "empty file", "too long", "too short", "empty file", "empty file", "empty transcript",
    ]  # fmt: skip
    assert len(recordings) == 13
    assert recordings[0].id == "train-00000-of-00002.parquet#7"


def test_bytes_that_fail_late_are_a_recording_error(load, tmp_path):
    rows = [{"audio": {"bytes": encoded(0), "path": "a"}, "text": "a", "duration": 1.0},
            {"audio": {"bytes": b"no audio", "path": "b"}, "text": "b", "duration": 1.0}]  # fmt: skip
    recordings = load(write_shards(tmp_path / "parquet", rows, shards=1))
    data = DataConfig(cache_dir=str(tmp_path / "cache"))
    spec = FeatureSpec(80, 16000, 400, 160, 30)
    assert len(load_waveform(recordings[0].audio, spec, data)) == 16000
    with pytest.raises(RecordingError, match="not readable"):
        load_waveform(recordings[1].audio, spec, data)


def test_plain_and_large_binary_columns_work_with_ids_and_durations(load, tmp_path):
    for kind in (pa.binary(), pa.large_binary()):
        schema = pa.schema(
            [("speech", kind), ("label", pa.large_string()), ("duration", pa.float64()), ("id", pa.int64())]
        )
        rows = [{"speech": encoded(n), "label": f"t{n}", "duration": 1.5, "id": 100 + n} for n in range(4)]
        folder = write_shards(tmp_path / str(kind), rows, schema=schema)
        recordings = load(folder, audio_column="speech", text_column="label")
        assert [recordings[i].id for i in range(4)] == ["100", "101", "102", "103"]
        assert recordings.hours == pytest.approx(6 / 3600)
        assert parse_locator(recordings[3].audio).column == "speech"


def test_parquet_that_holds_paths_is_a_manifest_of_files(load, tmp_path):
    folder = tmp_path / "parquet"
    rows = [{"audio": {"bytes": None, "path": f"clips/{n}.wav"}, "text": "t"} for n in range(3)]
    write_shards(folder, rows, schema=pa.schema([("audio", AUDIO_TYPE), ("text", pa.string())]))
    (folder / "clips").mkdir()
    for n in range(3):
        soundfile.write(folder / "clips" / f"{n}.wav", tone(1.0), 16000)
    assert load(folder)[2].audio == str(folder / "clips" / "2.wav")
    strings = write_shards(tmp_path / "strings", [{"path": str(folder / "clips" / "1.wav"), "text": "t"}], shards=1)
    assert load(strings)[0].audio == str(folder / "clips" / "1.wav")
    (folder / "clips" / "1.wav").unlink()
    with pytest.raises(TooManyRejectedError, match="file not found"):
        load(strings, min_duration_s=0.2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"audio": [0.1, 0.2], "text": "a"}], r"'audio' .* holds list<.*expected the bytes.*--data.audio_column"),
        ([{"audio": {"array": [0.1], "sampling_rate": 1}, "text": "a"}], "expected the bytes"),
        ([{"audio": 5, "text": "a"}], "holds int64: expected the bytes"),
        ([{"audio": b"a", "text": ["a"]}], "'text' .*expected text.*--data.text_column"),
        ([{"audio": b"a", "words": "a"}], "no column text or"),
    ],
)
def test_columns_of_the_wrong_type_are_refused(load, tmp_path, rows, message):
    with pytest.raises(ManifestError, match=message):
        load(write_shards(tmp_path / "parquet", rows, shards=1))


def test_files_that_are_no_parquet_or_differ_or_are_not_there_are_refused(load, tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows())
    with pytest.raises(ManifestError, match="no manifest at"):
        load(folder / "absent.parquet")
    with pytest.raises(ManifestError, match="no manifest at"):
        load(folder / "validation-*.parquet")
    table = pa.Table.from_pylist([{"audio": b"a", "text": "b"}])
    pq.write_table(table, folder / "zzz.parquet")
    with pytest.raises(ManifestError, match=r"zzz\.parquet has other columns than train-00000"):
        load(folder)
    (folder / "zzz.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ManifestError, match=r"cannot read .*zzz\.parquet as Parquet"):
        load(folder)


def test_damaged_parquet_stops_with_a_reason(load, tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows(), shards=1)
    file = next(folder.iterdir())
    content = bytearray(file.read_bytes())
    content[4:3000] = bytes(2996)
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"cannot read .*train-00000"):
        load(folder)


def test_two_splits_are_joined_and_a_wrong_one_is_named(load, tmp_path):
    folder = write_shards(tmp_path / "repo" / "data", example_rows(), shards=1)
    shutil.copy(folder / "train-00000-of-00001.parquet", folder / "test-00000-of-00001.parquet")
    assert len(load(f"hf://{tmp_path / 'repo'}:train+test")) == 24
    with pytest.raises(ManifestError, match="no split 'dev': it has train, test"):
        load(f"hf://{tmp_path / 'repo'}:dev")


def test_the_hub_out_of_reach_is_said_in_one_line(load, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ManifestError, match=r"cannot reach hf://org/name:train: .*without network give a folder"):
        load("hf://org/name:train", processes=1)


def test_a_repository_without_parquet_is_refused_with_the_branch_that_has_it(load, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.csv").write_text("audio,text\na.wav,one\n")
    with pytest.raises(ManifestError, match=r"not in Parquet \(train.csv\).*@refs%2Fconvert%2Fparquet"):
        load(f"hf://{tmp_path / 'repo'}:train")


@pytest.mark.parametrize("value", ["hf://org/name", "hf://org/name:train[:10%]", "hf://a/b/c/d:train", "hf://:train"])
def test_a_hub_name_that_cannot_be_meant_is_refused_at_once(value):
    with pytest.raises(ConfigurationError, match="expected hf://org/name:split"):
        DataConfig(train_manifest=value)


def test_processes_and_the_cache_find_the_same_recordings_and_no_audio_in_the_rows(load, tmp_path):
    rows = example_rows(40)
    rows[11]["audio"]["bytes"] = b"broken"
    folder = write_shards(tmp_path / "parquet", rows)
    scanned, cached = load(folder, processes=2), load(folder)
    alone = load(folder, cache_dir=str(tmp_path / "cache2"))
    assert scanned.digest == cached.digest == alone.digest
    assert len(scanned) == 39
    np.testing.assert_array_equal(scanned.blocks, alone.blocks)
    assert scanned.blocks[:, 0].tolist() == [3, 3, 3, 2, 3, 3, 2] + [3] * 6 + [2]
    assert scanned[20] == cached[20] == pickle.loads(pickle.dumps(scanned))[20]
    lines = max((tmp_path / "cache" / "scans").glob("*/rows.jsonl")).read_bytes().splitlines()
    assert max(map(len, lines)) < 200


READ_FILES = """
import sys
import data_processor, producing.worker_pool
from audio.waveform import load_waveform
from config import DataConfig
from features.feature_spec import FeatureSpec
data = DataConfig(cache_dir=sys.argv[2])
load_waveform(sys.argv[1], FeatureSpec(80, 16000, 400, 160, 30), data)
print([name for name in ("fsspec", "pyarrow", "datasets", "s3fs", "aiohttp") if name in sys.modules])
"""


def test_a_worker_that_reads_files_or_unpacked_audio_imports_no_driver(load, tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows())
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16000)
    for audio in (str(tmp_path / "a.wav"), load(folder)[0].audio):
        command = [sys.executable, "-c", READ_FILES, audio, str(tmp_path / "cache")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "[]"


LIMITED = """
import resource, sys
from config import DataConfig
from storage.row_group_cache import RowPlace, parse_locator, unpack
data = DataConfig(cache_dir=sys.argv[2])
if sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    import pyarrow.parquet
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unpack(parse_locator(sys.argv[1]), data)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
except Exception as error:
    print(type(error).__name__, error)
"""


def unpack_elsewhere(place: RowPlace, cache: Path, *limit: str) -> str:
    """What a process prints that unpacks a row group: MB of memory that it took, or its failure."""
    command = [sys.executable, "-c", LIMITED, place.locator, str(cache), *limit]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_full_disk_is_said_and_leaves_nothing_that_counts_as_unpacked(tmp_path):
    folder = write_shards(tmp_path / "parquet", example_rows(), shards=1, group_rows=12)
    data = DataConfig(cache_dir=str(tmp_path / "cache"))
    manifest = open_parquet(str(folder), data)
    place = RowPlace(str(folder / manifest.files[0]), "audio.bytes", 0, 0, manifest.digests[0])
    assert "cannot write" in unpack_elsewhere(place, tmp_path / "cache", "20000")
    assert not unpacked_path(place, data).exists()
    assert unpack_elsewhere(place, tmp_path / "cache").isdecimal()
    assert read_value(place, data) == example_rows(1)[0]["audio"]["bytes"]


def test_a_row_group_of_200_mb_does_not_come_into_memory(tmp_path):
    value = np.random.default_rng(0).bytes(2**20)
    table = pa.Table.from_pylist([{"audio": value, "text": "a"}] * 200)
    path = tmp_path / "large.parquet"
    pq.write_table(table, path, row_group_size=200, write_batch_size=4, use_dictionary=False)
    manifest = open_parquet(str(path), DataConfig())
    place = RowPlace(str(path), "audio", 0, 0, manifest.digests[0])
    assert int(unpack_elsewhere(place, tmp_path / "cache")) < 100
    assert unpacked_path(place, DataConfig(cache_dir=str(tmp_path / "cache"))).stat().st_size > 200 * 2**20
