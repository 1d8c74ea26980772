"""A corpus of files that are no recordings, or lie about themselves: none stops the producer, none fills the memory."""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import redis
import soundfile

from audio.audio_file import RecordingError
from audio.waveform import load_waveform
from config import DataConfig
from examples.make_tiny_checkpoint import make_tiny_checkpoint
from features.feature_spec import load_feature_spec
from features.log_mel import log_mel
from features.sample import SampleLimits, decode_sample
from tests.conftest import tone
from tests.runs import DIGITS, PRODUCER, Run, ending

MOST_BYTES = 10**9
RATE_HZ = 16_000
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nwhole.wav\n#EXT-X-ENDLIST\n"
FINE = "fine"
"""What `write_corpus` says of a file that can be used, odd as it is."""


def wav_header(*, sampling_rate: int = RATE_HZ, channels: int = 1, bits: int = 16, data_bytes: int = 32_000) -> bytes:
    """The header of a WAV file that claims what it is told to."""
    block, code = channels * bits // 8, 3 if bits == 32 else 1
    rates = struct.pack("<HHIIHH", code, channels, sampling_rate, sampling_rate * block % 2**32, block % 2**16, bits)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", 16) + rates + b"data" + struct.pack("<I", data_bytes)


def write_ticks(path: Path, duration_s: float, sampling_rate: int, **options) -> None:
    """A tick a second, for any length, written a second at a time."""
    with soundfile.SoundFile(path, "w", sampling_rate, options.pop("channels", 1), **options) as file:
        second = np.zeros((sampling_rate, file.channels), np.int16)
        second[0] = 10_000
        for _ in range(round(duration_s)):
            file.write(second)


def patch(path: Path, start: int, new: bytes) -> None:
    """Overwrites bytes of a file."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(new)


def write_corpus(folder: Path) -> dict[str, str]:
    """Writes the corpus.

    Returns:
        For each file's name `FINE`, or what the reason for its rejection must match.
    """
    speech, whole = tone(1.0), {}
    for kind in ("flac", "ogg", "wav"):
        soundfile.write(folder / f"whole.{kind}", tone(3.0), RATE_HZ)
        whole[kind] = (folder / f"whole.{kind}").read_bytes()
    noise = np.random.default_rng(0).bytes(40_000)

    def write(name: str, content: bytes) -> str:
        (folder / name).write_bytes(content)
        return name

    def audio(name: str, waveform: np.ndarray, **options) -> str:
        soundfile.write(folder / name, waveform, options.pop("sampling_rate", RATE_HZ), **options)
        return name

    impulse = np.zeros(RATE_HZ)
    impulse[RATE_HZ // 2] = 1.0
    corpus = {
        # Odd, but audio.
        audio("dc.wav", np.full(RATE_HZ, 0.7)): FINE,
        audio("clipped.wav", np.sign(speech)): FINE,
        audio("impulse.wav", impulse): FINE,
        audio("faint.wav", 1e-38 * speech, subtype="FLOAT"): FINE,
        audio("huge.wav", 1e38 * speech, subtype="FLOAT"): FINE,
        audio("shortest.wav", tone(0.1)): FINE,
        audio("slow.wav", tone(1.0, sampling_rate=1000), sampling_rate=1000): FINE,
        audio("8 channels at 192 kHz.wav", np.stack([tone(1.0, sampling_rate=192_000)] * 8, 1), sampling_rate=192_000)
        : FINE,
        write("flac in disguise.wav", whole["flac"]): FINE,
        write("wav in disguise.mp3", whole["wav"]): FINE,
        write("flac in disguise.raw", whole["flac"]): FINE,
        audio("line\nbreak \u2028 100 %s %20 'আ' \"ü\" \\ * $HOME.flac", speech): FINE,
        audio("-rf.flac", speech): FINE,
        # Not audio, though named so.
        write("empty.wav", b""): "empty file",
        write("one byte.flac", b"f"): "not readable as audio",
        write("text.wav", b"this is no audio"): "not readable as audio",
        write("page.mp3", b"<!doctype html><title>404</title>" * 400): "not readable as audio",
        write("noise.raw", noise): "not readable as audio",
        write("noise.vox", noise): "not readable as audio",
        write("noise.gsm", noise): "not readable as audio",
        # What ffmpeg reads, and what would lead it elsewhere.
        write("noise.m4a", b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42" + noise): "not readable as audio",
        write("noise.webm", b"\x1a\x45\xdf\xa3" + noise): "not readable as audio",
        write("noise.wma", bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + noise): "not readable as audio",
        write("noise.aac", b"\xff\xf1\x60\x40" + noise): "not readable as audio",
        write("noise.ogg", b"OggS\0\2" + noise): "not readable as audio",
        write("noise.avi", b"RIFF\0\0\0\0AVI LIST" + noise): "not readable as audio",
        write("playlist.m3u8", PLAYLIST): "not readable as audio",
        write("playlist.m4a", b"#EXTM3U\n" + PLAYLIST): "not readable as audio",
        write("playlist.aac", b"ffconcat version 1.0\nfile 'whole.flac'\n"): "not readable as audio",
        # Half of it, or damaged.
        write("truncated.flac", whole["flac"][: len(whole["flac"]) // 2]): "truncated|not readable as audio",
        write("truncated.ogg", whole["ogg"][:100]): "not readable as audio|too short|truncated",
        write("header only.wav", wav_header()): "too short|truncated",
        write("header only.flac", whole["flac"][:42]): "truncated|not readable as audio",
        write("noise behind the header.flac", whole["flac"][:86] + noise): "truncated|not readable as audio",
        # Claims of the header.
        write("4 GB.wav", wav_header(data_bytes=2**32 - 16) + (10_000 * speech).astype("<i2").tobytes())
        : f"{FINE}|too long",
        write("zero channels.wav", wav_header(channels=0) + noise): "not readable as audio",
        write("65535 channels.wav", wav_header(channels=65_535) + noise): "not readable as audio",
        write("zero hertz.wav", wav_header(sampling_rate=0) + noise): "not readable as audio",
        write("4 gigahertz.wav", wav_header(sampling_rate=2**32 - 1) + noise): "not readable as audio",
        write("2 gigahertz.wav", wav_header(sampling_rate=2**31 - 1) + noise): "not readable as audio",
        write("zero bits.wav", wav_header(bits=0) + noise): "not readable as audio",
        # No sound, or no numbers.
        audio("silence.wav", np.zeros(RATE_HZ)): f"{FINE}|silence: all samples are 0",
        audio("nan.wav", np.full(RATE_HZ, np.nan), subtype="FLOAT"): "NaN or infinity",
        audio("one nan.wav", np.where(np.arange(RATE_HZ) == 99, np.nan, speech), subtype="FLOAT"): "NaN or infinity",
        audio("infinity.wav", np.full(RATE_HZ, -np.inf), subtype="FLOAT"): "NaN or infinity",
        audio("beyond float32.wav", np.full(RATE_HZ, 1e300), subtype="DOUBLE"): "NaN or infinity",
        # Too short, too long.
        audio("no sample.wav", np.zeros(0)): "too short",
        audio("one sample.wav", np.zeros(1)): "too short",
        audio("31 s.flac", np.zeros(31 * 8000), sampling_rate=8000): "too long: 31.00 s",
        "three hours.flac": "too long: 10800.00 s",
        "three hours that claim to be of unknown length.flac": "too long",
        "three hours that claim to be 3 s.flac": FINE,
        "1024 channels.wav": FINE,
        # No files at all.
        "absent.wav": "file not found",
        "text.wav/inside.wav": "file not found",
        "null\0byte.wav": "file not found",
        "n" * 300 + ".wav": "cannot be read: File name too long",
        "folder.wav": "a folder",
        "pipe.wav": "a pipe or a device",
        "device.wav": "a pipe or a device",
        "loop.wav": "cannot be read: Too many levels of symbolic links",
        "dangling.wav": "file not found",
        "forbidden.wav": FINE if os.geteuid() == 0 else "cannot be read: Permission denied",
    }  # fmt: skip
    hours = folder / "three hours.flac"
    write_ticks(hours, 3 * 3600, 48_000, compression_level=0.0)  # 2 GB as float32
    for name, samples in (("unknown length", 0), ("3 s", 3 * 48_000)):
        lying = folder / f"three hours that claim to be {'of ' if not samples else ''}{name}.flac"
        lying.write_bytes(hours.read_bytes())
        patch(lying, 21, bytes([lying.read_bytes()[21] & 0xF0]) + samples.to_bytes(4, "big"))
    many = folder / "1024 channels.wav"  # 1.6 GB as float32; on disk a header, and nothing behind it
    many.write_bytes(wav_header(channels=1024, bits=8, data_bytes=1024 * 25 * RATE_HZ))
    os.truncate(many, many.stat().st_size + 1024 * 25 * RATE_HZ)
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    soundfile.write(folder / "forbidden.wav", speech, RATE_HZ)
    (folder / "forbidden.wav").chmod(0)
    return corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The corpus' folder, and what is to be said of each file."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with Whisper's own window of 30 s: the longer the window, the more a lie could cost."""
    folder = tmp_path_factory.mktemp("checkpoint30")
    make_tiny_checkpoint(DIGITS / "train" / "metadata.csv", folder, chunk_length=30)
    return folder


def test_each_file_is_used_or_refused_with_its_reason(corpus, checkpoint: Path) -> None:
    folder, expected = corpus
    spec = load_feature_spec(str(checkpoint))
    for name, verdict in expected.items():
        said = FINE
        try:
            waveform = load_waveform(folder / name, spec, DataConfig())
            assert np.isfinite(log_mel(waveform, spec)[0]).all(), name
        except RecordingError as refusal:
            said = str(refusal)
        assert re.search(verdict, said), f"{name!r}: {said}"
        assert "\n" not in said


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held so far."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def family_peaks(run: Run) -> tuple[dict[int, int], int, str]:
    """Runs the producer; the most memory of it and of each of its processes; exit code, stderr."""
    peaks: dict[int, int] = {}
    with ending(run.start(PRODUCER)) as (producer,):
        process = psutil.Process(producer.pid)
        while producer.running:
            for member in [process, *process.children(recursive=True)]:
                peaks[member.pid] = max(peaks.get(member.pid, 0), peak_bytes(member.pid))
            time.sleep(0.02)
        code, _, err = producer.finish()
        return peaks, code, err


@pytest.mark.parametrize("durations", ["read from the files", "claimed by the manifest"])
def test_no_file_stops_the_producer_or_makes_it_use_a_gigabyte(
    corpus, checkpoint: Path, make_run: Callable[..., Run], durations: str
) -> None:
    """With a duration in the manifest the scan believes it: then the workers meet every file, and replace it."""
    folder, expected = corpus
    believed = durations == "claimed by the manifest"
    run = make_run(
        data__epochs=2, data__max_rejected_fraction=0.99, data__num_workers=2, redis__max_memory_gb=1,
        model__model_name=checkpoint, audio_augmentation__multiple_aug=not believed,
    )  # fmt: skip
    claimed = {"duration": 0.1} if believed else {}
    with run.manifest.open("a", encoding="utf-8") as file:
        for name in expected:
            file.write(json.dumps({"audio": str(folder / name), "text": "one", "id": f"odd {name}"} | claimed) + "\n")
    peaks, code, err = family_peaks(run)
    assert code == 0, err
    assert "Traceback" not in err
    assert "died" not in err
    assert len(peaks) >= 3
    assert max(peaks.values()) < MOST_BYTES, peaks

    report = [json.loads(line) for line in (run.output_dir / "rejected.jsonl").read_text().split("\n") if line]
    reasons = {line["id"].removeprefix("odd "): line["reason"] for line in report}
    used = set()
    with redis.Redis(port=run.redis_config.port) as client:
        payloads = client.lrange("test:samples", 0, -1)
        plan = client.hget("test:meta", "fingerprint")
    assert plan is not None
    assert len(payloads) == run.status()["planned"] > 100
    limits = SampleLimits(80, 3000, 449, 10**6)
    for position, payload in enumerate(payloads):
        used.add(decode_sample(payload, key="k", position=position, plan=plan.decode(), limits=limits).id)
    for name, verdict in expected.items():
        assert (f"odd {name}" in used) != (name in reasons), name
        assert re.search(verdict, reasons.get(name, FINE)), f"{name!r}: {reasons.get(name)}"
