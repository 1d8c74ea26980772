"""What it costs to read segments of a long recording, and to count the lengths of MP3 files; used by `sources.py`.

segment of …         CPU time of a segment of 3 to 5 s of a long file, in random order, divided by that of the same
                     audio in a file of its own of the same format
scan of MP3          files/s of CPU time, one process; half of them without a Xing header, so that frames are counted
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile

from audio.file_bytes import FileBytes
from audio.mp3_frames import index_mp3, read_mp3_header
from audio.part import WHOLE, Part
from audio.waveform import load_waveform
from config import DataConfig
from features.feature_spec import FeatureSpec

RATE_HZ = 16_000
KINDS = ("flac", "wav", "ogg", "opus", "mp3", "m4a")


@dataclass(frozen=True)
class Segments:
    """Segments of one long recording."""

    hours: float
    begins: np.ndarray
    """Samples at `RATE_HZ`."""
    lengths: np.ndarray

    @classmethod
    def draw(cls, hours: float, count: int) -> Segments:
        """`count` of them, at random places in the first half second to the last."""
        rng, samples = np.random.default_rng(0), round(hours * 3600 * RATE_HZ)
        lengths = rng.integers(3 * RATE_HZ, 5 * RATE_HZ, count)
        return cls(hours, rng.integers(0, samples - 6 * RATE_HZ, count), lengths)


def speech(clips: Path, hours: float) -> np.ndarray:
    """The clips one after the other, again and again: int16 `[samples]`."""
    files = sorted(clips.glob("*.flac"))
    once = np.concatenate([soundfile.read(file, dtype="int16")[0] for file in files])
    return np.resize(once, round(hours * 3600 * RATE_HZ))


def write(path: Path, waveform: np.ndarray) -> None:
    """Writes int16 `[samples]` in the format that the ending tells."""
    if path.suffix != ".m4a":
        options = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
        with soundfile.SoundFile(path, "w", RATE_HZ, 1, **options) as file:
            for start in range(0, len(waveform), RATE_HZ):  # libsndfile's Vorbis encoder takes its blocks on the stack
                file.write(waveform[start : start + RATE_HZ])
        return
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for start in range(0, len(waveform), RATE_HZ):
            piece = np.ascontiguousarray(waveform[None, start : start + RATE_HZ])
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def measure_segments(
    clips: Path, folder: Path, hours: float, count: int, spec: FeatureSpec, kinds: tuple[str, ...] = KINDS
) -> Iterator[tuple[str, float]]:
    """Names and figures."""
    folder.mkdir()
    data, segments, waveform = DataConfig(), Segments.draw(hours, count), speech(clips, hours)
    for kind in kinds:
        long, own = folder / f"long.{kind}", []
        write(long, waveform)
        for number, (begin, length) in enumerate(zip(segments.begins, segments.lengths, strict=True)):
            own.append(folder / f"{number}.{kind}")
            write(own[-1], waveform[begin : begin + length])
        parts = [
            Part(begin / RATE_HZ, length / RATE_HZ)
            for begin, length in zip(segments.begins.tolist(), segments.lengths.tolist(), strict=True)
        ]
        seconds = np.zeros(2)
        for file, part in zip(
            own, parts, strict=True
        ):  # in turns, so that other work on the machine disturbs both alike
            for which, job in enumerate(((file, WHOLE), (long, part))):
                started = time.process_time()
                load_waveform(job[0], spec, data, job[1])
                seconds[which] += time.process_time() - started
        yield f"segment of {hours:g} h of {kind}, times its own file", seconds[1] / seconds[0]
        yield f"segment of {hours:g} h of {kind}, ms", 1000 * seconds[1] / count
    yield "most memory of the process, MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_mp3_manifest(clips: Path, folder: Path, rows: int) -> Path:
    """MP3 files, every other without the frame that tells its length, and a manifest of them."""
    folder.mkdir()
    names = []
    for number, clip in enumerate(sorted(clips.glob("*.flac"))):
        path = folder / f"{number}.mp3"
        write(path, soundfile.read(clip, dtype="int16")[0])
        if number % 2:
            with FileBytes(path) as file:
                header = read_mp3_header(file)
                begin = int(index_mp3(file, header).begins[0]) if header else 0
                frames = file.read(begin, file.size)
            path.write_bytes(frames)
        names.append(path.name)
    for number in range(len(names), rows):
        shutil.copy(folder / names[number % len(names)], folder / f"{number}.mp3")
    manifest = folder / "mp3.jsonl"
    manifest.write_text("".join(json.dumps({"audio": f"{n}.mp3", "text": "one"}) + "\n" for n in range(rows)))
    return manifest
