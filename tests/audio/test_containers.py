"""What a file says of itself is checked against what is in it, and everything that ffmpeg reads is read."""

from __future__ import annotations

import http.server
import io
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio.audio_file import RecordingError, open_audio
from audio.file_bytes import FileBytes
from audio.mp3_frames import index_mp3, is_complete, read_mp3_header
from audio.waveform import load_waveform, recording_duration_s
from config import DataConfig
from features.feature_spec import FeatureSpec
from tests.audio.encoded import encode

ROOT = Path(__file__).parents[2]
SPEC, DATA = FeatureSpec(80, 16_000, 400, 160, 30), DataConfig()
RATE_HZ = 16_000


def speech(duration_s: float, sampling_rate: int = RATE_HZ) -> np.ndarray:
    """A rising tone with syllables: no moment sounds like another. float32 `[samples]`."""
    time_s = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    tone = np.sin(2 * np.pi * (200 * time_s + 500 / duration_s * time_s**2))
    return (0.5 * tone * (0.6 + 0.4 * np.sin(8 * np.pi * time_s))).astype(np.float32)


def pcm(waveform: np.ndarray) -> bytes:
    """16-bit samples, as in a WAV file."""
    return (32_767 * waveform).astype("<i2").tobytes()


def wav(data_bytes: int, riff_bytes: int, content: bytes) -> bytes:
    """A WAV file with these sizes in its header."""
    header = struct.pack("<4sI8sIHHIIHH", b"RIFF", riff_bytes, b"WAVEfmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    return header + b"data" + struct.pack("<I", data_bytes) + content


def duration_s(path: Path) -> float:
    """Of the decoded waveform; the scan must say the same."""
    decoded_s = len(load_waveform(path, SPEC, DATA)) / RATE_HZ
    assert recording_duration_s(str(path), DATA) == pytest.approx(decoded_s, abs=0.1)
    return decoded_s


def reason(path: Path) -> str:
    """Why a recording is refused."""
    with pytest.raises(RecordingError) as refusal:
        load_waveform(path, SPEC, DATA)
    return str(refusal.value)


def without_xing(path: Path) -> bytes:
    """The frames of an MP3 file without the one that says how many they are."""
    with FileBytes(path) as file:
        header = read_mp3_header(file)
        assert header is not None
        assert is_complete(file, header)
        index = index_mp3(file, header)
        return file.read(int(index.begins[0]), index.end - int(index.begins[0]))


@pytest.fixture(scope="module")
def vbr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s of MP3 whose bit rate varies: half noise, half nearly nothing."""
    path = tmp_path_factory.mktemp("mp3") / "vbr.mp3"
    waveform = speech(4.0)
    waveform[: RATE_HZ // 2] = 0.3 * np.random.default_rng(0).standard_normal(RATE_HZ // 2)
    waveform[2 * RATE_HZ :] *= 0.01
    soundfile.write(path, waveform, RATE_HZ, bitrate_mode="VARIABLE", compression_level=0.5)
    return path


@pytest.mark.parametrize("lead", ["", "cover art", "zeros", "joined"])
def test_the_length_of_an_mp3_file_is_counted(vbr: Path, tmp_path: Path, lead: str) -> None:
    frames, art = without_xing(vbr), b"ID3\3\0\0" + bytes([0, 3, 0x6B, 0x20]) + bytes(range(250)) * 260
    content = {
        "": frames,
        "cover art": art[: 10 + (3 << 14 | 0x6B << 7 | 0x20)] + frames,
        "zeros": bytes(1000) + frames,
    }
    path = tmp_path / "a.mp3"
    path.write_bytes(content.get(lead, vbr.read_bytes() + frames))
    assert duration_s(path) == pytest.approx(8.1 if lead == "joined" else 4.1, abs=0.1)
    whole = load_waveform(vbr, SPEC, DATA)
    found = load_waveform(path, SPEC, DATA)
    shift = int(np.argmax(np.correlate(found[:8000], whole[1000:5000], "valid"))) - 1000
    np.testing.assert_allclose(found[shift:][: len(whole) - 100], whole[:-100], atol=1e-3)


def test_an_mp3_file_that_was_cut_is_found_out_by_the_scan(vbr: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp3"
    path.write_bytes(vbr.read_bytes()[: vbr.stat().st_size // 2])
    assert "s of audio where the header says 4.00 s" in reason(path)
    with pytest.raises(RecordingError, match="truncated"):
        recording_duration_s(str(path), DATA)


@pytest.mark.parametrize(
    ("data_bytes", "riff_bytes"),
    [
        (0, 0),
        (0, 36),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x7FFFFFFF - 36, 0x7FFFFFFF),
        (2 * 10**9, 2 * 10**9 + 36),
        (64_000, 0),
    ],
)
def test_a_wav_file_whose_sizes_were_never_filled_in_is_read_whole(tmp_path, data_bytes, riff_bytes):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(data_bytes, riff_bytes, pcm(speech(2.0))))
    assert duration_s(path) == 2.0


def test_a_flac_file_from_a_pipe_is_read_whole(tmp_path):
    path = tmp_path / "pipe.flac"
    soundfile.write(path, speech(2.0), RATE_HZ)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
    path.write_bytes(content)
    assert duration_s(path) == 2.0


@pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.opus", "OPUS")])
def test_of_chained_ogg_all_streams_are_read(tmp_path, name, subtype):
    path = tmp_path / name
    content = b""
    for part in (speech(2.0), speech(1.5)):
        soundfile.write(path, part, RATE_HZ, format="OGG", subtype=subtype)
        content += path.read_bytes()
    path.write_bytes(content)
    assert duration_s(path) == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.wav", {}, "the header says 2.00 s"),
        ("a.wav", {"format": "RF64"}, "the header says 2.00 s"),
        ("a.wav", {"subtype": "ULAW"}, "the header says 2.00 s"),
        ("a.aiff", {}, "the header says 2.00 s"),
        ("a.au", {}, "the header says 2.00 s"),
        ("a.sph", {"format": "NIST"}, "the header says 2.00 s"),
        ("a.flac", {}, "the header says 2.00 s"),
        ("a.ogg", {}, "its last page says"),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, "its last page says"),
    ],
)
def test_a_file_that_was_cut_short_is_refused(tmp_path, name, options, says):
    path = tmp_path / name
    soundfile.write(path, speech(2.0), RATE_HZ, **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    said = reason(path)
    assert said.startswith("truncated: ")
    assert says in said
    if name in ("a.wav", "a.aiff", "a.au"):
        assert said.startswith("truncated: 1.50 s of audio") or "1.49" in said
        with pytest.raises(RecordingError, match="truncated"):
            recording_duration_s(str(path), DATA)


def test_audio_behind_what_a_wav_header_says_is_not_left_out_in_silence(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(32_000, 32_036, pcm(speech(2.0))))
    assert reason(path) == "the header says 1.00 s, but 2.00 s of audio follow it"
    for tail in (b"LIST\x0c\0\0\0INFOISFT" + bytes(4000), bytes(9000), b"id3 " + bytes(5000), b"TAG" + bytes(125)):
        path.write_bytes(wav(32_000, 32_036, pcm(speech(1.0)) + tail))
        assert duration_s(path) == 1.0


def test_audio_shorter_than_the_manifest_says_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(1.5), RATE_HZ)
    assert len(load_waveform(path, SPEC, DATA, expected_duration_s=1.58)) == 24_000
    with pytest.raises(RecordingError, match=r"truncated: 1\.50 s of audio where the manifest says 2\.00 s"):
        load_waveform(path, SPEC, DATA, expected_duration_s=2.0)


def test_a_file_without_a_sample_is_empty_even_when_no_duration_is_too_short(tmp_path):
    data = DataConfig(min_duration_s=0)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE_HZ)
    soundfile.write(tmp_path / "one.wav", np.ones(1), 192_000)
    for name in ("none.wav", "one.wav"):
        with pytest.raises(RecordingError, match="empty: no audio in it"):
            load_waveform(tmp_path / name, SPEC, data)


@pytest.mark.parametrize(
    "name", ["a.m4a", "a.mp4", "a.mov", "a.webm", "a.mkv", "a.wma", "a.aac", "a.oga", "a.avi", "a.ts", "a.mp3"]
)
def test_what_ffmpeg_reads_is_read(tmp_path, name):
    path = encode(tmp_path / name, speech(2.0), RATE_HZ, picture=name in ("a.mp4", "a.avi", "a.ts"))
    waveform = load_waveform(path, SPEC, DATA)
    assert duration_s(path) == pytest.approx(2.0, abs=0.13)
    with open_audio(path) as file, open_audio(io.BytesIO(path.read_bytes())) as in_memory:  # as out of Parquet
        np.testing.assert_array_equal(*(np.concatenate([*one.blocks(0, 10**6)]) for one in (file, in_memory)))
    middle = speech(2.0)[10_000:20_000]
    shift = int(np.argmax(np.correlate(waveform, middle, "valid")))
    assert np.corrcoef(waveform[shift : shift + 10_000], middle)[0, 1] > 0.99


def test_amr_and_speex_are_read(tmp_path):
    path = encode(tmp_path / "a.amr", speech(2.0, 8000), 8000)
    assert duration_s(path) == pytest.approx(2.0, abs=0.05)
    assert duration_s(Path(__file__).parent / "speex.spx") == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["a.m4a", "a.mkv", "a.aac", "a.wma", "a.oga"])
def test_what_ffmpeg_reads_is_refused_when_it_was_cut_short(tmp_path, name):
    options = {"movflags": "faststart"} if name == "a.m4a" else {}
    path = encode(tmp_path / name, speech(2.0), RATE_HZ, **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    if name == "a.aac":  # nothing in it says how long it was
        assert duration_s(path) == pytest.approx(1.5, abs=0.3)
        with pytest.raises(RecordingError, match="where the manifest says 2"):
            load_waveform(path, SPEC, DATA, expected_duration_s=2.0)
    else:
        assert "truncated: " in reason(path)


def test_a_video_without_audio_and_one_that_is_too_long_are_refused(tmp_path):
    path = encode(tmp_path / "long.aac", speech(31.0, 8000), 8000)
    assert "too long" in reason(path)
    assert recording_duration_s(str(path), DATA) == pytest.approx(31.0, abs=0.3)


def test_a_playlist_leads_to_no_other_address(tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/secret.aac".encode()
        movie = encode(tmp_path / "a.mov", speech(1.0), RATE_HZ).read_bytes()
        for name, content in {
            "a.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n" + url + b"\n#EXT-X-ENDLIST\n",
            "a.aac": b"ffconcat version 1.0\nfile '" + url + b"'\n",
            "a.mpd": b'<?xml version="1.0"?><MPD><BaseURL>' + url + b"</BaseURL></MPD>",
            "a.mov": movie.replace(b"url \0\0\0\1", b"url \0\0\0\0"),
        }.items():
            (tmp_path / name).write_bytes(content)
            if name != "a.mov":
                assert "not readable as audio" in reason(tmp_path / name)
        server.shutdown()
        thread.join()
    assert asked == []


def test_without_pyav_a_file_that_needs_it_is_refused_with_its_name(tmp_path):
    path = encode(tmp_path / "a.m4a", speech(1.0), RATE_HZ)
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from audio.waveform import *\n"
        "try: load_waveform(sys.argv[1], FeatureSpec(80, 16000, 400, 160, 30), DataConfig())\n"
        "except RecordingError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    pin = next(line.partition(" ")[0] for line in (ROOT / "requirements.txt").open() if line.startswith("av=="))
    assert result.stdout == f"not readable as audio: only ffmpeg's libraries read this file: pip install {pin}\n"


def test_what_libsndfile_reads_well_needs_no_pyav(tmp_path):
    for kind in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(tmp_path / f"a.{kind}", speech(1.0), RATE_HZ)
    (tmp_path / "frames.mp3").write_bytes(without_xing(tmp_path / "a.mp3"))
    code = (
        "import sys, pathlib\nfrom audio.waveform import *\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    load_waveform(path, FeatureSpec(80, 16000, 400, 160, 30), DataConfig())\n"
        "print('av' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("False\n", "")
