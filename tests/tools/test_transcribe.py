"""tools.transcribe writes what `generate` of Hugging Face writes, of files of any length, in four formats."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from common.errors import UserError
from tests.runs import DIGITS
from tools import speech_to_text, transcribe
from tools.speech_to_text import Segment, Transcriber, Transcript
from tools.transcript_formats import FORMATS

EVAL = DIGITS / "eval"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a window of 4 s that writes at most 12 tokens of a window, because it has learned nothing."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    changed = generation | {"max_length": 12, "language": "english", "task": "transcribe"}
    (folder / "generation_config.json").write_text(json.dumps(changed))
    return folder


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of digits one behind the other, 6 s."""
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(EVAL.glob("*.ogg"))[:5]]
    path = tmp_path_factory.mktemp("long") / "long.flac"
    soundfile.write(path, np.concatenate(clips), 16000)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["transcribe", *map(str, arguments)])
    transcribe.main()


def only(transcriber: Transcriber, file: Path) -> Transcript:
    return next(transcript for _, transcript in transcriber.transcribe([str(file)]))


def test_files_and_folders_become_json_and_error_rates(model, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "clips" / "deeper"
    folder.mkdir(parents=True)
    shutil.copy(EVAL / "0000.ogg", folder)
    (folder / "notes.txt").write_text("no audio")
    (folder / "._0000.ogg").write_bytes(b"")
    files = [EVAL / "0001.ogg", tmp_path / "clips"]
    run(monkeypatch, *files, "--model", model, "--format", "json", "--compare", EVAL)
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [Path(entry["file"]).name for entry in found] == ["0001.ogg", "0000.ogg"]
    assert "2 of 2 files have a reference" in err
    assert "WER normalised" in err
    for entry in found:
        waveform, rate = soundfile.read(EVAL / Path(entry["file"]).name, dtype="float32")
        assert entry["text"] == hugging_face(model, waveform)[0]
        assert [s["text"] for s in entry["segments"]] == [entry["text"]]
        assert entry["segments"][0]["end"] == pytest.approx(len(waveform) / rate, abs=0.01)


def hugging_face(model: Path, waveform: np.ndarray, **arguments) -> tuple[str, list[tuple[float, float, str]]]:
    """Text and segments that `generate` gives."""
    whisper, processor = WhisperForConditionalGeneration.from_pretrained(model), WhisperProcessor.from_pretrained(model)
    inputs = processor.feature_extractor(waveform, sampling_rate=16000, return_tensors="pt", **arguments)
    with torch.inference_mode():
        answer = whisper.generate(**inputs, return_timestamps=bool(arguments), return_segments=bool(arguments))
    if not arguments:
        return processor.tokenizer.decode(answer[0], skip_special_tokens=True).strip(), []
    decode = processor.tokenizer.decode
    segments = [
        (float(s["start"]), float(s["end"]), decode(s["tokens"], skip_special_tokens=True).strip())
        for s in answer["segments"][0]
    ]
    return "", [segment for segment in segments if segment[2]]


def test_a_long_file_is_decoded_sequentially_with_the_times_of_generate(model, long_file):
    waveform, _ = soundfile.read(long_file, dtype="float32")
    _, expected = hugging_face(model, waveform, truncation=False, padding="longest", return_attention_mask=True)
    found = only(Transcriber(str(model)), long_file)
    assert [s.text for s in found.segments] == [text for _, _, text in expected]
    duration_s = len(waveform) / 16000
    for segment, (start, end, _) in zip(found.segments, expected, strict=True):
        assert (segment.start, segment.end) == pytest.approx((min(start, duration_s), min(end, duration_s)))
    assert found.text == " ".join(text for _, _, text in expected)  # never glued together


def test_a_file_longer_than_a_block_is_gone_through_to_its_end(model, long_file, monkeypatch):
    monkeypatch.setattr(speech_to_text, "BLOCK_S", 5.0)
    done: list[float] = []
    transcriber = Transcriber(str(model))
    found = next(transcript for _, transcript in transcriber.transcribe([str(long_file)], done.append))
    duration_s = soundfile.info(long_file).duration
    assert sum(done) == pytest.approx(duration_s, abs=0.01)
    assert len(done) >= 2
    starts = [segment.start for segment in found.segments]
    assert starts == sorted(starts)
    assert all(0 <= segment.start <= segment.end <= duration_s + 0.01 for segment in found.segments)


def test_without_timestamps_a_long_file_is_cut_where_it_is_quiet(model, tmp_path):
    loud = (0.3 * np.random.default_rng(0).standard_normal(16000 * 9)).astype(np.float32)
    loud[16000 * 3 : 16000 * 3 + 8000] = 0.0
    soundfile.write(tmp_path / "pause.wav", loud, 16000)
    windows: list[float] = []
    list(Transcriber(str(model), timestamps=False).transcribe([str(tmp_path / "pause.wav")], windows.append))
    assert 3.0 < windows[0] < 3.5
    assert max(windows) <= 4.0
    assert sum(windows) == pytest.approx(9.0, abs=0.01)


def test_a_file_at_another_rate_is_resampled_as_a_stream(model, long_file, tmp_path):
    waveform, _ = soundfile.read(long_file, dtype="float32")
    soundfile.write(tmp_path / "8k.wav", np.stack([waveform[::2]] * 2, axis=1), 8000)
    blocks = speech_to_text.AudioBlocks(str(tmp_path / "8k.wav"), 16000, peak_normalize=False)
    assert len(blocks.fill(600)) == pytest.approx(len(waveform), abs=2)


def test_a_file_that_cannot_be_read_does_not_stop_the_others(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    files = [tmp_path / "broken.wav", EVAL / "0000.ogg"]
    with pytest.raises(UserError, match="1 of 2 files could not be transcribed"):
        run(monkeypatch, *files, "--model", model, "--format", "srt", "--output", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0000.srt"]
    assert "broken.wav: not readable as audio" in caplog.text


TALK = Transcript("talk.mp3", [Segment(0.0, 1.5, "one two"), Segment(3661.25, 3662.0, "three")])


def test_every_format_says_the_same():
    assert FORMATS["text"]([TALK]) == "one two three\n"
    assert FORMATS["text"]([TALK, TALK]).splitlines()[1] == "talk.mp3\tone two three"
    assert json.loads(FORMATS["json"]([TALK])) == [
        {
            "file": "talk.mp3",
            "text": "one two three",
            "segments": [
                {"start": 0.0, "end": 1.5, "text": "one two"},
                {"start": 3661.25, "end": 3662.0, "text": "three"},
            ],
        }
    ]
    assert FORMATS["srt"]([TALK]) == (
        "1\n00:00:00,000 --> 00:00:01,500\none two\n\n2\n01:01:01,250 --> 01:01:02,000\nthree\n"
    )
    assert FORMATS["vtt"]([TALK]).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none two\n\n01:01:01.250")


def test_transcripts_whose_names_would_collide_keep_the_ending():
    names = transcribe.output_names(["a/talk.mp3", "a/talk.wav", "b/talk.wav", "c/other.wav"], "text")
    assert names == ["talk.mp3.txt", "talk.wav.1.txt", "talk.wav.2.txt", "other.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no FILES"),
        (["/nowhere/talk.mp3"], "no file or folder"),
        ([str(EVAL / "0000.ogg"), "--language", "Klingon"], "does not know this language"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(model, monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        run(monkeypatch, *arguments, "--model", model)
    assert "\n" not in str(caught.value)
