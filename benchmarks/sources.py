"""What it costs to read audio from files, from Parquet unpacked or streamed, and by ways that were not taken.

    python benchmarks/sources.py             # a table; --json FILE writes the figures as well

Clips of 3 to 5 s in FLAC, decoded as a worker does, one core, in the random order of a plan; the files are in the page
cache. Samples/s of CPU time, which other processes of the machine disturb little, with all unpacking on the way in.

files                a path per recording
unpacked             Parquet whose row groups were unpacked by the scan (data.streaming False)
streamed, N rows     Parquet with N rows per row group, in the order of a streamed plan (data.streaming True)
mapped Arrow         the same rows as `datasets` loads them: a memory-mapped copy
group per sample     Parquet read in place, a row group for every sample, 100 rows per group
scan, unpack         rows/s of a scan, one process; MB/s of unpacking
segments, MP3        see `benchmarks/parts.py`; --hours 3 --segments 2000 is a whole day of a parliament in small
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import csv

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import tyro

from audio.waveform import load_waveform
from benchmarks.clips import make_clips
from benchmarks.parts import measure_segments, write_mp3_manifest
from config import Config, DataConfig, ModelConfig
from corpus.recordings import Recordings
from corpus.scan import load_recordings
from examples.make_tiny_checkpoint import make_tiny_checkpoint
from features.feature_spec import FeatureSpec, load_feature_spec
from features.labels import load_transcript_encoder
from producing.plan import make_plan
from storage.row_group_cache import parse_locator, unpack

MIB = 2**20


@dataclass
class Settings:
    """What the command line sets."""

    json: Path | None = None
    """File for the figures."""
    rows: int = 4000
    """Rows of the data set; 200 different clips in turn."""
    samples: int = 2000
    """Samples read per measurement."""
    hours: float = 0.1
    """Length of the recording that segments are read of."""
    segments: int = 100
    """How many."""
    only_files: bool = False
    """Whether to leave out all that has to do with Parquet."""


def write_parquet(clips: Path, target: Path, rows: int, group_rows: int) -> int:
    """Writes a data set with the audio inside. Returns its bytes of audio."""
    with (clips / "metadata.csv").open(encoding="utf-8") as file:
        values = [((clips / row["audio"]).read_bytes(), row["text"]) for row in csv.DictReader(file)]
    target.mkdir()
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("audio", kind), ("text", pyarrow.string())])
    size = 0
    with pyarrow.parquet.ParquetWriter(target / "train-00000-of-00001.parquet", schema) as writer:
        for start in range(0, rows, group_rows):
            group = [values[number % len(values)] for number in range(start, min(start + group_rows, rows))]
            size += sum(len(content) for content, _ in group)
            items = [{"audio": {"bytes": content, "path": None}, "text": text} for content, text in group]
            writer.write_table(pyarrow.Table.from_pylist(items, schema), row_group_size=group_rows)
    return size


def per_second(samples: int, read: Callable[[int], object], order: Iterable[int]) -> float:
    """Samples/s of reading `samples` of them in this order."""
    order = list(order)[:samples]
    started = time.process_time()
    for number in order:
        read(number)
    return samples / (time.process_time() - started)


class Bench:
    """The clips in all forms, and how they are read."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self._model = ModelConfig(model_name=str(folder / "checkpoint"), language="English")
        make_tiny_checkpoint(ROOT / "examples" / "digits" / "train" / "metadata.csv", folder / "checkpoint")
        self._encoder = load_transcript_encoder(self._model)
        spec = load_feature_spec(self._model.model_name)
        self._spec = FeatureSpec(spec.num_mel_bins, spec.sampling_rate, spec.n_fft, spec.hop_length, 30)

    @property
    def spec(self) -> FeatureSpec:
        """What the model takes."""
        return self._spec

    def load(self, manifest: Path, data: DataConfig) -> Recordings:
        report = self._folder / "rejected.jsonl"
        return load_recordings(str(manifest), data, self._spec, self._encoder, report=report, processes=0)

    def measure_mp3_scan(self, data: DataConfig) -> float:
        """Files/s of CPU time."""
        manifest = write_mp3_manifest(self._folder / "clips", self._folder / "mp3", self._settings.rows)
        started = time.process_time()
        return len(self.load(manifest, data)) / (time.process_time() - started)

    def measure(self, manifest: Path, data: DataConfig) -> tuple[float, float]:
        """Samples/s in the plan's order, and rows/s of the scan."""
        started = time.process_time()
        recordings = self.load(manifest, data)
        scanned = (len(recordings) + recordings.rejected) / (time.process_time() - started)
        plan = make_plan(Config(data=data, model=self._model), recordings)
        shutil.rmtree(Path(data.cache_dir) / "streamed", ignore_errors=True)
        order = (plan.draw(position).row for position in range(self._settings.samples))
        read = per_second(
            self._settings.samples, lambda row: load_waveform(recordings[row].audio, self._spec, data), order
        )
        return read, scanned

    def measure_unpacking(self, manifest: Path, data: DataConfig, size: int) -> float:
        """MB/s of unpacking a whole data set."""
        recordings = self.load(manifest, data)
        shutil.rmtree(Path(data.cache_dir) / "unpacked")
        places = {(p.group, p.file): p for n in range(len(recordings)) if (p := parse_locator(recordings[n].audio))}
        started = time.process_time()
        for place in places.values():
            unpack(place, data)
        return size / MIB / (time.process_time() - started)

    def random_rows(self) -> list[int]:
        return np.random.default_rng(0).permutation(self._settings.rows).tolist()

    def measure_arrow(self, manifest: Path) -> float:
        """Samples/s from the memory-mapped copy that `datasets` makes."""
        table = datasets.load_dataset(
            "parquet", data_files=f"{manifest}/*.parquet", split="train", cache_dir=str(self._folder / "arrow")
        )
        data = DataConfig()

        def read(row: int) -> None:
            waveform, _ = soundfile.read(io.BytesIO(table[row]["audio"]["bytes"]), dtype="float32")
            float(np.abs(waveform).max()) if data.peak_normalize else None

        return per_second(self._settings.samples, read, self.random_rows())

    def measure_groups(self, manifest: Path, group_rows: int) -> float:
        """Samples/s when every sample reads its row group."""
        parquet = pyarrow.parquet.ParquetFile(next(manifest.glob("*.parquet")))

        def read(row: int) -> None:
            group = parquet.read_row_group(row // group_rows, columns=["audio"])
            soundfile.read(io.BytesIO(group["audio"][row % group_rows]["bytes"].as_py()), dtype="float32")

        return per_second(self._settings.samples // 10, read, self.random_rows())


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(Settings, description=__doc__)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder, figures = Path(temporary), {}
        make_clips(folder / "clips")
        bench = Bench(folder, settings)
        figures["scan of MP3, files/s"] = bench.measure_mp3_scan(cached_in(folder))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        figures |= measure_segments(
            folder / "clips", folder / "segments", settings.hours, settings.segments, bench.spec
        )
        if not settings.only_files:
            figures |= measure_parquet(bench, folder, settings)
        for name, value in figures.items():
            print(f"{name:<50}{value:>10.4g}" if value < 100 else f"{name:<50}{value:>10.0f}")
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(figures, indent=2) + "\n")


def cached_in(folder: Path, **more: object) -> DataConfig:
    """Settings of one process whose cache is in the folder."""
    return DataConfig(cache_dir=str(folder / "cache"), num_workers=1, **more)  # type: ignore[arg-type]


def measure_parquet(bench: Bench, folder: Path, settings: Settings) -> dict[str, float]:
    """Files against Parquet, unpacked and streamed."""
    figures = {}
    size = write_parquet(folder / "clips", folder / "groups of 100", settings.rows, 100)
    write_parquet(folder / "clips", folder / "groups of 1000", settings.rows, 1000)
    files = folder / "files.jsonl"
    with (folder / "clips" / "metadata.csv").open(encoding="utf-8") as file:
        rows = [{"audio": f"clips/{row['audio']}", "text": row["text"]} for row in csv.DictReader(file)]
    files.write_text("".join(json.dumps(rows[n % len(rows)]) + "\n" for n in range(settings.rows)))
    figures["files, samples/s"], figures["scan of files, rows/s"] = bench.measure(files, cached_in(folder))
    hundred, thousand = folder / "groups of 100", folder / "groups of 1000"
    figures["unpacked, samples/s"], figures["scan that unpacks, rows/s"] = bench.measure(hundred, cached_in(folder))
    streamed = cached_in(folder, streaming=True, streaming_cache_gb=size / 2 / 2**30)
    figures["streamed, 100 rows per group, samples/s"], _ = bench.measure(hundred, streamed)
    wide = cached_in(folder, streaming=True, streaming_cache_gb=4.1 * size * 1000 / settings.rows / 2**30)
    figures["streamed, 1000 rows per group, samples/s"], _ = bench.measure(thousand, wide)
    figures["mapped Arrow, samples/s"] = bench.measure_arrow(hundred)
    figures["group per sample, samples/s"] = bench.measure_groups(hundred, 100)
    figures["unpack, MB/s"] = bench.measure_unpacking(hundred, cached_in(folder), size)
    return figures


if __name__ == "__main__":
    main()
