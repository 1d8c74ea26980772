"""Corpora of many layouts are recognised by looking, and become recordings with the right audio, times and words."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Literal

import datasets
import pytest
import soundfile

from audio.audio_file import RecordingError
from audio.part import WHOLE, Part
from audio.waveform import load_waveform
from config import DataConfig
from corpus.formats import FORMATS, find_manifest
from corpus.manifest import ManifestError
from corpus.recordings import Recording, Recordings
from corpus.rejected_report import TooManyRejectedError
from features.feature_spec import FeatureSpec
from tests.conftest import tone


def write(root: Path, files: dict[str, str]) -> Path:
    """Writes text files, and a second of a tone for each name whose value is empty."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content:
            path.write_text(content, encoding="utf-8")
        else:
            soundfile.write(path, tone(1.0), 16000)
    return root


def all_of(recordings: Recordings) -> list[Recording]:
    return [recordings[index] for index in range(len(recordings))]


def words(recordings: Recordings) -> list[tuple[str, str]]:
    """Name of the audio file without folder, and transcript, of each recording."""
    return [(Path(each.audio).name, each.transcript) for each in all_of(recordings)]


def as_jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


HEADER = "client_id\tpath\tsentence_id\tsentence\n"
WHOLE_FILES: dict[str, tuple[str, dict[str, str]]] = {
    "ljspeech": ("metadata.csv", {
        "metadata.csv": "a|one, 1|one, one\nb|two|two\n", "wavs/a.wav": "", "wavs/b.wav": ""}),
    "common_voice": ("", {
        "validated.tsv": f'{HEADER}x\ta.mp3\ts\tone, 1\ny\tb.mp3\ts\ttwo\n', "clips/a.mp3": "", "clips/b.mp3": "",
        "clip_durations.tsv": "clip\tduration[ms]\na.mp3\t900\nb.mp3\t800\n"}),
    "librispeech": ("", {"84/1/84-1.trans.txt": "a one, 1\nb two\n", "84/1/a.flac": "", "84/1/b.flac": ""}),
    "mls": ("", {
        "transcripts.txt": "1_2_a\tone, 1\n1_2_b\ttwo\n", "audio/1/2/1_2_a.flac": "", "audio/1/2/1_2_b.flac": ""}),
    "openslr": ("", {
        "utt_spk_text.tsv": "00a\ts\tone, 1\n01b\ts\ttwo\n", "data/00/00a.flac": "", "data/01/01b.flac": ""}),
    "kaldi": ("", {"text": "a one, 1\nb two\n", "wav.scp": "a a.wav\nb wav/b.wav\n", "a.wav": "", "wav/b.wav": "",
                   "utt2dur": "a 1.0\n"}),
    "text_beside": ("", {"x/a.wav": "", "x/a.txt": "one,\n1\n", "b.wav": "", "b.txt": "two", "._b.wav": "x"}),
    "audiofolder": ("train", {"train/metadata.csv": 'file_name,text\na.wav,"one, 1"\nb.wav,two\n', "train/a.wav": "",
                              "train/b.wav": "", "test/metadata.csv": "file_name,text\nc.wav,c\n"}),
    "nemo": ("m.json", {"m.json": as_jsonl({"audio_filepath": "a.wav", "text": "one, 1", "duration": 1.0},
                                           {"audio_filepath": "b.wav", "text": "two"}), "a.wav": "", "b.wav": ""}),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_corpus_of_whole_files_is_read(load, tmp_path, name):
    manifest, files = WHOLE_FILES[name]
    folder = write(tmp_path / "corpus", files)
    found = load(folder / manifest)
    assert sorted(each.transcript for each in all_of(found)) == ["one, 1", "two"]
    for each in all_of(found):
        assert Path(each.audio).is_file()
        assert Path(each.audio).stem[-1] == ("a" if each.transcript == "one, 1" else "b")
        assert each.part == WHOLE
    assert found.hours * 3600 == pytest.approx(1.7 if name == "common_voice" else 2.0, abs=0.1)
    shutil.copytree(folder, tmp_path / "moved")
    shutil.rmtree(folder)
    assert load(tmp_path / "moved" / manifest, cache_dir=str(tmp_path / "cache 2")).digest == found.digest


def cut(**values) -> dict:
    recording = {"id": "r", "sources": [{"type": "file", "channels": [0], "source": "long.wav"}], "duration": 4.0}
    return {"id": "c", "type": "MonoCut", "start": 1.0, "duration": 3.0, "channel": 0, "recording": recording, **values}


SUPERVISIONS = [{"id": "s1", "start": 0.0, "duration": 1.0, "text": "one", "language": "bn"},
                {"id": "s2", "start": 2.5, "duration": 0.5, "text": "two"}]  # fmt: skip
SRT = "1\n00:00:01,000 --> 00:00:02,000\n<i>one</i>\n\n2\n00:00:03,500 --> 00:00:04,000 X1:3\n{\\an8}two\n"
VTT = "WEBVTT\n\nNOTE none\n\nid\n00:01.000 --> 00:02.000 align:left\n<v Ann>one\n\n00:03.500 --> 00:04.000\ntwo\n"
SEGMENTS: dict[str, tuple[str, dict[str, str]]] = {
    "lhotse": ("c.jsonl", {"c.jsonl": as_jsonl(cut(supervisions=SUPERVISIONS))}),
    "kaldi": ("", {"wav.scp": "r long.wav\n", "text": "s1 one\ns2 two\n", "segments": "s1 r 1.0 2.0\ns2 r 3.5 4\n",
                   "utt2lang": "s1 bn\n"}),
    "stm": ("t.stm", {"t.stm": ";; x\nlong 1 s 1.00 2.00 <o,f0> one\nlong 1 s 3.5 4.0 two\n"
                               "long 1 s 4 5 <o> ignore_time_segment_in_scoring\n"}),
    "srt": ("", {"long.srt": SRT}),
    "vtt": ("long.vtt", {"long.vtt": VTT}),
    "nemo": ("m.json", {"m.json": as_jsonl(
        {"audio_filepath": "long.wav", "text": "one", "offset": 1.0, "duration": 1.0, "language": "bn"},
        {"audio_filepath": "long.wav", "text": "two", "offset": 3.5, "duration": 0.5})}),
}  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_corpus_of_segments_is_read(load, tmp_path, name):
    manifest, files = SEGMENTS[name]
    folder = write(tmp_path / "corpus", files)
    soundfile.write(folder / "long.wav", tone(5.0), 16000)
    first, second = all_of(load(folder / manifest, max_rejected_fraction=0.4))
    assert (first.transcript, first.part.offset_s, first.part.duration_s) == ("one", 1.0, 1.0)
    assert (second.transcript, second.part.offset_s, second.part.duration_s) == ("two", 3.5, 0.5)
    assert first.audio == second.audio == str(folder / "long.wav")
    assert first.id != second.id
    assert first.language == ("bn" if name in ("lhotse", "kaldi", "nemo") else "")


def test_lhotse_cuts_are_read_packed_and_by_channel_and_what_is_no_file_is_refused(load, tmp_path):
    stereo = cut()["recording"] | {"sources": [{"type": "file", "channels": [0, 1], "source": "long.wav"}]}
    row = cut(recording=stereo, channel=1, start=0.0, supervisions=[SUPERVISIONS[0] | {"duration": 4.0}])
    folder = write(tmp_path / "corpus", {"cuts.jsonl": as_jsonl(row)})
    soundfile.write(folder / "long.wav", tone(5.0), 16000)
    (folder / "cuts.jsonl.gz").write_bytes(gzip.compress((folder / "cuts.jsonl").read_bytes()))
    for name in ("cuts.jsonl", "cuts.jsonl.gz"):
        assert load(folder / name)[0].part == Part(channel=1)
    command = cut()["recording"] | {"sources": [{"type": "command", "channels": [0], "source": "touch x"}]}
    for row, message in (
        (cut(recording=command, supervisions=SUPERVISIONS), r"line 1 of .* type 'command': expected one file or URL"),
        ({"type": "MixedCut", "tracks": []}, "a cut without a recording"),
        (cut(start="x", supervisions=SUPERVISIONS), "not a cut as lhotse writes it"),
    ):
        (folder / "cuts.jsonl").write_text(as_jsonl(row))
        with pytest.raises(ManifestError, match=message):
            load(folder / "cuts.jsonl")


def test_a_command_in_a_kaldi_folder_is_never_run(load, tmp_path):
    ran = tmp_path / "ran"
    files = {"text": "a one\n", "wav.scp": f"a touch {ran}; cat a.wav |\n"}
    with pytest.raises(
        ManifestError, match=r"line 1 of .*wav\.scp is a command .* never run: write the audio to files"
    ):
        load(write(tmp_path / "corpus", files))
    assert not ran.exists()
    (tmp_path / "corpus" / "wav.scp").write_text("a x.ark:25\n")
    with pytest.raises(ManifestError, match="a place in an archive"):
        load(tmp_path / "corpus")


def test_kaldi_utterances_without_audio_or_text_are_in_the_report(load, tmp_path):
    files = {"text": "a one\nb two\n", "wav.scp": "a a.wav\n", "a.wav": ""}
    recordings = load(write(tmp_path / "corpus", files), max_rejected_fraction=0.5)
    assert (len(recordings), recordings.rejected) == (1, 1)


def encoded(duration_s: float = 1.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(duration_s), 16000, format="FLAC")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_audio_in_tar_shards_is_read_where_it_lies(load, tmp_path):
    folder = tmp_path / "shards"
    write_tar(folder / "s-0.tar", {"x/a.flac": encoded(1.0), "x/a.txt": "আমি".encode(), "x/._a.flac": b"x"})
    write_tar(folder / "s-1.tar", {"b.json": b'{"text": 2, "language": "bn", "words": [1]}', "b.flac": encoded(1.5),
                                   "c.d.flac": encoded(2), "c.txt": b"three"})  # fmt: skip
    recordings = load(folder)
    assert [each.transcript for each in all_of(recordings)] == ["আমি", "2", "three"]
    assert [each.id for each in all_of(recordings)] == ["x/a", "b", "c"]
    assert recordings[1].language == "bn"
    spec = FeatureSpec(80, 16000, 400, 160, 30)
    assert [len(load_waveform(each.audio, spec, DataConfig())) for each in all_of(recordings)] == [16000, 24000, 32000]
    assert load(folder / "s-*.tar").digest == recordings.digest
    assert len(load(folder / "s-0.tar")) == 1
    write_tar(folder / "s-1.tar", {"b.flac": encoded(), "b.txt": b"b"}, "w:gz")
    with pytest.raises(ManifestError, match="expected a tar file that is not compressed"):
        load(folder)
    (folder / "s-1.tar").unlink()
    with pytest.raises(RecordingError, match="file not found"):
        load_waveform(str(folder / "s-1.tar#512+20"), spec, DataConfig())


def test_nemos_tarred_manifest_finds_its_members(load, tmp_path):
    write_tar(tmp_path / "audio_0.tar", {"a.flac": encoded(1.0)})
    write_tar(tmp_path / "audio_1.tar", {"a.flac": encoded(2.0)})
    row = {"audio_filepath": "a.flac", "duration": 1.0}
    rows = [{**row, "text": "one", "shard_id": 0}, {**row, "text": "two", "shard_id": 1, "duration": None},
            {**row, "text": "none", "shard_id": 7}]  # fmt: skip
    (tmp_path / "tarred_audio_manifest.json").write_text(as_jsonl(*rows))
    recordings = load(tmp_path / "tarred_audio_manifest.json", max_rejected_fraction=0.4)
    assert [each.transcript for each in all_of(recordings)] == ["one", "two"]
    assert recordings.hours * 3600 == pytest.approx(3.0)


def test_a_saved_data_set_is_read_with_paths_or_with_audio_inside(load, tmp_path):
    folder = tmp_path / "saved"
    paths = datasets.Dataset.from_dict({"audio": ["a.wav", "b.wav"], "text": ["one", "two"], "id": [7, 8]})
    paths.save_to_disk(folder)
    write(folder, {"a.wav": "", "b.wav": ""})
    assert [(each.id, each.transcript) for each in all_of(load(folder))] == [("7", "one"), ("8", "two")]
    audio = [{"bytes": encoded(1 + n), "path": f"{n}.flac"} for n in range(3)]
    inside = datasets.Dataset.from_list([{"audio": each, "text": "one"} for each in audio])
    datasets.DatasetDict({"train": inside, "test": inside}).save_to_disk(tmp_path / "splits")
    recordings = load(tmp_path / "splits" / "train")
    assert [each.id for each in all_of(recordings)] == ["0.flac", "1.flac", "2.flac"]
    spec = FeatureSpec(80, 16000, 400, 160, 30)
    data = DataConfig(cache_dir=str(tmp_path / "cache"))
    assert len(load_waveform(recordings[2].audio, spec, data)) == 48000
    with pytest.raises(ManifestError, match=r"holds the splits test, train: name one"):
        load(tmp_path / "splits")


def test_audio_without_a_transcript_beside_it_is_in_the_report(load, tmp_path):
    folder = write(tmp_path / "corpus", {"a.wav": "", "a.txt": "one", "b.wav": ""})
    with pytest.raises(TooManyRejectedError, match="1 × empty transcript"):
        load(folder)


def test_a_format_can_be_named_and_a_wrong_name_is_refused_with_the_right_ones(load, tmp_path):
    folder = write(tmp_path / "corpus", {"metadata.csv": "file_name,text\na.wav,one\n", "a.wav": "", "a.txt": "two"})
    assert load(folder)[0].transcript == "one"
    assert load(folder, format="text_beside")[0].transcript == "two"
    with pytest.raises(ManifestError, match=r"'kald': expected one of mixture, common_voice, .*kaldi"):
        load(folder, format="kald")


def test_a_folder_of_corpora_names_them(tmp_path):
    write(tmp_path, {"train/metadata.csv": "file_name,text\n", "test/metadata.csv": "file_name,text\n"})
    with pytest.raises(ManifestError, match=r"But these are: .*test, .*train; name one of them"):
        find_manifest(str(tmp_path))
    shutil.rmtree(tmp_path / "train")
    write(tmp_path, {"data/train-0.parquet": "x"})
    with pytest.raises(ManifestError, match=r"copy of a Hub repository: name a split of it, hf://.*:train"):
        find_manifest(str(tmp_path))


def test_every_format_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")
    for each in FORMATS:
        assert f"`{each.name}`" in text
