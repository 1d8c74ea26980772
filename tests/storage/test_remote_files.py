"""Audio at URLs makes the samples of the same audio in files, and trouble with a store never changes the stream."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile

from audio.audio_file import RecordingError
from audio.waveform import load_waveform, recording_duration_s
from config import DataConfig
from corpus.manifest import ManifestError
from corpus.rejected_report import TooManyRejectedError
from features.feature_spec import FeatureSpec
from producing.worker_pool import SampleMaker
from storage.remote_files import SourceError, is_url, join
from tests.conftest import tone
from tests.corpus.test_parquet_manifest import data_of, encoded, example_rows, report_of, write_files, write_shards
from tests.producing.test_worker_pool import stream
from tests.servers import accepts, find_free_port
from tests.servers import wait_for as wait_until

SPEC = FeatureSpec(80, 16000, 400, 160, 30)


def upload(s3, folder: Path, prefix: str) -> str:
    """Puts all files of a folder into the bucket. Returns its URL."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
    return f"s3://bucket/{prefix}"


def write_urls(path: Path, urls: list[str], **more: object) -> Path:
    path.write_text(
        "".join(json.dumps({"audio": url, "text": f"text {n}", **more}) + "\n" for n, url in enumerate(urls))
    )
    return path


@pytest.mark.parametrize(
    ("root", "name", "joined"),
    [
        ("/data", "a.flac", "/data/a.flac"),
        ("/data", "/b/a.flac", "/b/a.flac"),
        ("/data", "file:///b/a.flac", "/b/a.flac"),
        ("/data", "s3://b/a.flac", "s3://b/a.flac"),
        ("s3://bucket/train", "clips/a.flac", "s3://bucket/train/clips/a.flac"),
        ("s3://bucket/train", "../clips/./a.flac", "s3://bucket/clips/a.flac"),
        ("s3://bucket/train", "/b/a.flac", "/b/a.flac"),
        ("https://me:word@host/train", "a.flac", "https://me:word@host/train/a.flac"),
    ],
)
def test_names_are_relative_to_the_manifest_wherever_it_is(root, name, joined):
    assert join(root, name) == joined
    assert is_url(joined) == (not joined.startswith("/"))


def test_the_stream_from_s3_has_the_samples_of_the_stream_from_files(s3, recipe_of, tmp_path):
    """Manifest, audio files and Parquet in the bucket."""
    rows = example_rows()
    files = data_of(recipe_of(write_files(tmp_path / "files", rows), epochs=1))
    url = upload(s3, tmp_path / "files", "same")
    assert data_of(recipe_of(f"{url}/metadata.jsonl", epochs=1)) == files
    assert data_of(recipe_of(url, epochs=1)) == files
    parquet = upload(s3, write_shards(tmp_path / "parquet", rows), "parquet")
    assert data_of(recipe_of(f"{parquet}/train-*.parquet", epochs=1)) == files
    streamed = data_of(recipe_of(f"{parquet}/train-*.parquet", epochs=1, streaming=True))
    assert sorted(id for id, _ in streamed) == sorted(id for id, _ in files)


def test_workers_read_s3_with_the_credentials_of_the_environment(s3, recipe_of, tmp_path):
    url = upload(s3, write_files(tmp_path / "files", example_rows()), "workers")
    recipe = recipe_of(url, epochs=1)
    assert stream(recipe, 2) == SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads


def test_the_files_of_a_chunk_are_fetched_at_the_same_time(recipe_of, tmp_path):
    """The server takes 0.2 s for each and counts how many it has under way."""
    folder = write_files(tmp_path / "files", example_rows())
    under_way: list[int] = []
    lock = threading.Lock()

    class Slow(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, directory=str(folder), **options)

        def do_GET(self):
            with lock:
                under_way.append(1)
                counts.append(len(under_way))
            time.sleep(0.2)
            super().do_GET()
            with lock:
                under_way.pop()

        def log_message(self, *arguments):
            pass

    counts: list[int] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}/clip{n}.x" for n in range(12)]
        recipe = recipe_of(write_urls(tmp_path / "train.jsonl", urls, duration=1.0), epochs=1)
        assert not counts
        chunk = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
        server.shutdown()
    assert not chunk.rejected
    assert len(counts) == 12  # the original and the copy of a recording share a request
    assert max(counts) > 6


def test_http_file_and_memory_urls_are_read(http_folder, load, tmp_path):
    import fsspec

    folder, url = http_folder
    for name in ("a.flac", "b.wav"):
        soundfile.write(folder / name, tone(1.0), 16000)
    fsspec.filesystem("memory").pipe_file("/clip.flac", (folder / "a.flac").read_bytes())
    urls = [f"{url}/a.flac", f"file://{folder}/b.wav", "memory://clip.flac"]
    recordings = load(write_urls(tmp_path / "train.jsonl", urls))
    assert recordings.hours == pytest.approx(3 / 3600)
    waveforms = [load_waveform(recordings[i].audio, SPEC, DataConfig()) for i in range(3)]
    assert [len(waveform) for waveform in waveforms] == [16000] * 3
    (folder / "web.jsonl").write_text('{"audio": "a.flac", "text": "one"}\n')
    assert load(f"{url}/web.jsonl")[0].audio == f"{url}/a.flac"


@pytest.mark.parametrize("name", ["long.flac", "long.wav", "long.mp3", "long.ogg"])
def test_the_duration_of_a_long_file_is_that_of_its_header(s3, http_folder, tmp_path, name):
    path = http_folder[0] / name
    soundfile.write(path, tone(29.0, sampling_rate=44100).repeat(2).reshape(-1, 2), 44100)
    if name.endswith(("flac", "wav")):
        assert path.stat().st_size > 2**19
    for url in (s3.put(f"long/{name}", path.read_bytes()), f"{http_folder[1]}/{name}"):
        assert recording_duration_s(url, DataConfig(retry_timeout_s=3)) == pytest.approx(29.0, abs=0.05)


def test_a_header_behind_a_large_picture_is_found(s3, tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(29.0, sampling_rate=44100), 44100)
    flac = (tmp_path / "a.flac").read_bytes()
    padding = bytes([1]) + (2**19).to_bytes(3, "big") + bytes(2**19)
    url = s3.put("picture.flac", flac[:42] + padding + flac[42:])
    assert recording_duration_s(url, DataConfig(retry_timeout_s=3)) == pytest.approx(29.0)


def test_missing_and_bad_objects_are_rejected_rows(s3, load, tmp_path):
    good = s3.put("rows/good.flac", encoded(0))
    bad = [s3.put("rows/empty.flac", b""), s3.put("rows/text.flac", b"no audio"), "s3://bucket/rows/absent.flac"]
    manifest = write_urls(tmp_path / "train.jsonl", [*bad, *[good] * 100])
    recordings = load(manifest, processes=1)
    assert len(recordings) == 100
    assert [(line["row"], line["reason"].partition(":")[0]) for line in report_of(tmp_path)] == [
        (0, "empty file"), (1, "not readable as audio"), (2, "file not found"),
    ]  # fmt: skip


def test_a_duration_in_the_manifest_saves_every_request(s3, load, tmp_path):
    s3.stop()
    recordings = load(write_urls(tmp_path / "train.jsonl", ["s3://bucket/never/read.flac"], duration=2.0))
    assert recordings.hours == pytest.approx(2 / 3600)


def test_an_object_that_vanishes_is_replaced_but_a_store_that_vanishes_is_not(s3, recipe_of, tmp_path):
    url = upload(s3, write_files(tmp_path / "files", example_rows()), "vanish")
    recipe = recipe_of(url, epochs=1, retry_timeout_s=2, max_rejected_fraction=0.5)
    whole = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
    s3.delete("vanish/clip3.x")
    replaced = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
    assert len(replaced.rejected) >= 2
    assert {json.loads(line)["id"] for line in replaced.rejected} == {"clip3.x"}
    assert sum(a != b for a, b in zip(whole.payloads, replaced.payloads, strict=True)) == 2
    s3.stop()
    with pytest.raises(SourceError, match=r"s3://bucket/vanish/.* can't be reached, tried for .*data.retry_timeout_s"):
        SampleMaker(recipe).make_chunk(0, len(recipe.plan))


def test_a_store_that_comes_back_in_time_leaves_the_stream_as_it_was(s3, recipe_of, tmp_path):
    rows = example_rows()
    url = upload(s3, write_files(tmp_path / "files", rows), "back")
    parquet = upload(s3, write_shards(tmp_path / "parquet", rows), "back")
    for recipe in (
        recipe_of(url, epochs=1, retry_timeout_s=60),
        recipe_of(f"{parquet}/*.parquet", epochs=1, retry_timeout_s=60, streaming=True),
    ):
        expected = SampleMaker(recipe).make_chunk(0, len(recipe.plan)).payloads
        for path in (tmp_path / "cache" / "streamed").glob("*-*"):
            path.unlink()
        s3.stop()
        restart = threading.Timer(3.0, s3.start)
        restart.start()
        chunk = SampleMaker(recipe).make_chunk(0, len(recipe.plan))
        restart.join()
        assert chunk.payloads == expected
        assert not chunk.rejected


def test_a_store_that_cannot_be_reached_stops_a_scan_and_rejects_nothing(s3, load, tmp_path):
    manifest = write_urls(tmp_path / "train.jsonl", [s3.put(f"down/{n}.flac", encoded(0)) for n in range(40)])
    s3.stop()
    for processes in (0, 1):
        with pytest.raises(SourceError, match="can't be reached, tried for"):
            load(manifest, processes=processes, retry_timeout_s=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SourceError, match="can't be reached"):
        load("s3://bucket/down/train.csv", retry_timeout_s=1)


def test_a_server_that_refuses_is_quoted_without_the_secrets_of_the_url(load, tmp_path):
    """The server says 403 to everything."""
    refusing = "import http.server as h\nclass R(h.BaseHTTPRequestHandler):\n def do_GET(self): self.send_error(403)\n"
    port = find_free_port()
    command = [sys.executable, "-c", f"{refusing}h.HTTPServer(('127.0.0.1', {port}), R).serve_forever()"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://me:word@127.0.0.1:{port}/a.flac?X-Amz-Signature=sealed"
            wait_until(lambda: accepts(port))
            with pytest.raises(SourceError, match=r"a\.flac gives no permission .*403") as caught:
                load(write_urls(tmp_path / "train.jsonl", [url]), retry_timeout_s=600)
            assert "word" not in str(caught.value)
            assert "sealed" not in str(caught.value)
        finally:
            server.kill()


def test_no_permission_stops_at_once_and_says_so(s3, load, http_folder, tmp_path, monkeypatch):
    """Without credentials; the driver signs requests, so the server is not even asked."""
    import s3fs

    url = s3.put("denied.flac", encoded(0))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"denied.flac gives no permission .*credentials"):
        load(write_urls(tmp_path / "train.jsonl", [url]), retry_timeout_s=600)
    assert time.monotonic() - started < 100
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_bucket_stops_instead_of_rejecting_every_row(s3, load, tmp_path):
    with pytest.raises(SourceError, match="no such bucket"):
        load(write_urls(tmp_path / "train.jsonl", ["s3://no-such-bucket/a.flac"]))


def test_unknown_protocols_and_missing_drivers_are_named(load, tmp_path):
    with pytest.raises(SourceError, match=r"unknown protocol s4://, expected a path or one of .*s3"):
        load(write_urls(tmp_path / "train.jsonl", ["s4://bucket/a.flac"]))
    with pytest.raises(SourceError, match=r"gs:// needs a package that is missing: pip install gcsfs==\d"):
        load(write_urls(tmp_path / "train.jsonl", ["gs://bucket/a.flac"]))
    with pytest.raises(SourceError, match=r"abfs:// needs a package that is missing: pip install adlfs"):
        load("abfs://bucket/train.csv")


def test_manifests_that_are_not_at_their_url_are_refused(s3, load):
    with pytest.raises(ManifestError, match=r"no manifest at s3://bucket/absent\.csv"):
        load("s3://bucket/absent.csv")
    with pytest.raises(ManifestError, match=r"no manifest at s3://bucket/absent\.parquet"):
        load("s3://bucket/absent.parquet")
    with pytest.raises(ManifestError, match="no Parquet files at s3://bucket/absent"):
        load("s3://bucket/absent/*.parquet")
    with pytest.raises(ManifestError, match=r"s3://bucket/absent holds no metadata\.csv"):
        load("s3://bucket/absent/")


def test_all_rows_missing_is_still_too_many_rejected(s3, load, tmp_path):
    with pytest.raises(TooManyRejectedError, match="3 × file not found"):
        load(write_urls(tmp_path / "train.jsonl", [f"s3://bucket/absent/{n}.flac" for n in range(3)]))


def test_a_forked_process_reads_what_its_parent_has_read_too(s3):
    """As the trainer's DataLoader workers do."""
    url = s3.put("fork.flac", encoded(0))
    data = DataConfig(retry_timeout_s=3)
    load_waveform(url, SPEC, data)
    child = os.fork()
    if not child:
        os._exit(0 if len(load_waveform(url, SPEC, data)) == 16000 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_addresses_that_cannot_be_meant_are_rejected_rows_or_stop_at_once(s3, load, http_folder, tmp_path):
    good = s3.put("address.flac", encoded(0))
    bad = ["http://[bad/a.flac", "http://me:word@127.0.0.1:99999/a.flac?key=1"]
    load(write_urls(tmp_path / "train.jsonl", [*bad, *[good] * 50]))
    assert [line["audio"] for line in report_of(tmp_path)] == ["http://[bad/a.flac", "http://127.0.0.1:99999/a.flac"]
    with pytest.raises(SourceError, match="Invalid bucket name"):
        load(write_urls(tmp_path / "train.jsonl", [good, "s3://Bad Bucket!/a"]), retry_timeout_s=600)


def test_a_missing_object_is_a_recording_error(s3):
    with pytest.raises(RecordingError, match="file not found"):
        load_waveform("s3://bucket/absent.flac", SPEC, DataConfig(retry_timeout_s=3))
