"""Where a worker's time goes: each stage on the same clips, beside the least that it could take.

    python benchmarks/profile_stages.py                # a table; --json FILE writes the figures as well

share     of a worker's time in the round robin (half originals, the others by the eight in turn), by a stopwatch around
          each stage while the worker works
ms        one call on one clip of 3 to 5 s, by itself; options (speed factors, distances, …) in turn
floor     the work without which the stage cannot be, by the fastest call that does it, measured in turn with the stage
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import scipy.fft
import soundfile
import soxr
import tyro

import data_processor
from audio import augmentation_registry
from audio import waveform as waveform_module
from audio.augmentation_registry import AUGMENTATIONS
from audio.noise_sources import NoiseRecordings
from audio.waveform import load_waveform
from audioaugmentations import AudioAugmentations, Choice, Floats, Step
from benchmarks.clips import make_clips
from benchmarks.harness import Figure, clips_recipe, embedded, furnish, pinned, write_json
from corpus.recordings import Recordings
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from features.log_mel import log_mel
from features.sample import Sample, SampleLimits, decode_sample, encode_sample
from producing import sample_worker
from producing.plan import Plan
from producing.plan_card import make_card
from producing.recipe import StreamRecipe
from producing.worker_pool import SampleMaker
from sample_queue.connection import make_client
from sample_queue.writer import SampleWriter

CHUNK = 32
OTHER_RATES_HZ = (44_100, 48_000)


@dataclass
class Settings:
    """What the command line sets."""

    json: Path | None = None
    """File for the figures."""
    rounds: int = 9
    """Rounds; in each, every stage and every floor runs over the clips once."""
    clips: int = 24
    """Clips that a round goes over."""


@dataclass
class Stage:
    """A stage, and the least that it could take, each as a call on one of its inputs."""

    name: str
    run: Callable[[Any], object]
    floor: Callable[[Any], object]
    floor_name: str
    inputs: Sequence[Any]


class Stages:
    """The stages over one set of clips."""

    def __init__(self, folder: Path, recipe: StreamRecipe, clips: int) -> None:
        self.folder, self.recipe, self.spec, self.data = folder, recipe, recipe.spec, recipe.config.data
        self.files = sorted((folder / "clips").glob("*.flac"))[:clips]
        self.waveforms = [load_waveform(file, self.spec, self.data) for file in self.files]
        self.log_mels = [log_mel(waveform, self.spec)[0] for waveform in self.waveforms]
        self.maker = SampleMaker(recipe)
        config = recipe.config
        self.augmentations = AudioAugmentations(
            config.audio_augmentation, Path(config.data.cache_dir), self.spec.window_samples
        )
        limits = SampleLimits(self.spec.num_mel_bins, self.spec.window_frames, recipe.encoder.max_tokens, 2**31 - 1)
        self.samples = [
            decode_sample(payload, key="", position=position, plan=recipe.fingerprint, limits=limits)
            for position, payload in enumerate(self.maker.make_chunk(0, clips).payloads)
        ]

    def all(self) -> list[Stage]:
        """Those of a worker, in the order of the work, then those of other files."""
        return [self.plan(), self.decode(), *map(self.augmentation, AUGMENTATIONS), *self.features()] + [
            self.resampling(rate_hz) for rate_hz in OTHER_RATES_HZ
        ]

    def plan(self) -> Stage:
        """Position → recording, transcript, labels, random generator."""
        recipe = self.recipe

        def look_up(position: int) -> None:
            recording = recipe.recordings[recipe.plan.draw(position).row]
            recipe.plan.generator(position)
            recipe.encoder.encode(recording.transcript)

        def tokens(position: int) -> None:
            recipe.encoder.encode("one two three")

        return Stage("plan, transcript", look_up, tokens, "tokenizer", range(len(self.files)))

    def decode(self) -> Stage:
        """File → waveform."""
        return Stage("decode", self._load, _read, "libsndfile", self.files)

    def resampling(self, rate_hz: int) -> Stage:
        """The same for files at another rate."""
        folder = self.folder / str(rate_hz)
        folder.mkdir()
        files = []
        for file, waveform in zip(self.files, self.waveforms, strict=True):
            files.append(folder / file.name)
            soundfile.write(files[-1], soxr.resample(waveform, self.spec.sampling_rate, rate_hz), rate_hz)

        def read_and_resample(file: Path) -> None:
            soxr.resample(_read(file).astype(np.float32), rate_hz, self.spec.sampling_rate, quality="HQ")

        return Stage(f"decode at {rate_hz} Hz", self._load, read_and_resample, "libsndfile + soxr", files)

    def augmentation(self, name: str) -> Stage:
        """One of the eight."""
        floors: dict[str, tuple[Callable[[Any], object], str]] = {
            "speed": (np.copy, "copy"),
            "pitch_shift": (lambda waveform: soxr.resample(waveform, 44, 37), "soxr"),
            "far_field": (_transform_and_back, "FFT and back"),
            "background_noise": (_add, "one addition"),
            "color_noise": (_add, "one addition"),
            "down_upsampling": (self._down_and_up, "soxr twice"),
            "speech_enhancement": (_short_transforms_and_back, "STFT and back"),
            "masking": (np.copy, "copy"),
        }
        options = cycle(self.augmentations.options[name])
        rng = np.random.default_rng(0)

        def run(signal: Floats) -> None:
            choice = Choice((Step(name, next(options)),))
            if name == "masking":
                self.augmentations.apply_log_mel(signal, choice, rng)
            else:
                self.augmentations.apply_waveform(signal, choice, rng)

        inputs = self.log_mels if name == "masking" else self.waveforms
        return Stage(name, run, *floors[name], inputs)

    def features(self) -> list[Stage]:
        """Waveform → log-mel → float16 → bytes."""
        frames = [_frames(waveform, self.spec) for waveform in self.waveforms]
        transforms = Stage("log-mel", lambda pair: log_mel(pair[0], self.spec), _transform_frames, "float64 FFT",
                           list(zip(self.waveforms, frames, strict=True)))  # fmt: skip
        return [
            transforms,
            Stage("to float16", lambda a: a.astype(np.float16), lambda a: a.astype(np.float16), "itself",
                  self.log_mels),
            Stage("encode", encode_sample, _copy_bytes, "copy", self.samples),
        ]  # fmt: skip

    def _load(self, file: Path) -> Floats:
        return load_waveform(file, self.spec, self.data)

    def _down_and_up(self, waveform: Floats) -> None:
        rate = self.spec.sampling_rate
        soxr.resample(soxr.resample(waveform, rate, 4000), 4000, rate)


def _read(file: Path) -> Floats:
    """By the fastest way: 16-bit files as they are."""
    waveform: Floats = soundfile.read(file, dtype="int16")[0]
    return waveform


def _add(waveform: Floats) -> Floats:
    return waveform + waveform


def _transform_and_back(waveform: Floats) -> None:
    length = scipy.fft.next_fast_len(len(waveform), real=True)
    scipy.fft.irfft(scipy.fft.rfft(waveform, length), length)


def _short_transforms_and_back(waveform: Floats) -> None:
    frames = np.resize(waveform, (2 * len(waveform) // 512, 512))
    scipy.fft.irfft(scipy.fft.rfft(frames), 512)


def _frames(waveform: Floats, spec: FeatureSpec) -> np.ndarray:
    frames = -(-(len(waveform) + spec.n_fft // 2) // spec.hop_length)
    return np.resize(waveform, (frames, spec.n_fft)).astype(np.float64)


def _transform_frames(pair: tuple[Floats, np.ndarray]) -> None:
    for start in range(0, len(pair[1]), 80):
        np.fft.rfft(pair[1][start : start + 80], axis=1)


def _copy_bytes(sample: Sample) -> bytes:
    return sample.input_features.tobytes()


def measure_push(folder: Path, recipe: StreamRecipe, rounds: int) -> tuple[list[float], list[float]]:
    """ms per sample of `SampleWriter.push`, and of bare RPUSHes, by CPU time of this process."""
    payloads = SampleMaker(recipe).make_chunk(0, CHUNK).payloads
    pushes, bare = [], []
    with embedded(2.0) as config:
        writer, client = SampleWriter(config, make_card(recipe)), make_client(config)
        tail = writer.open()
        for _ in range(rounds):
            started = time.process_time()
            tail = writer.push(tail, payloads)
            pushes.append((time.process_time() - started) * 1000 / CHUNK)
            started = time.process_time()
            client.rpush("bare", *payloads)
            bare.append((time.process_time() - started) * 1000 / CHUNK)
        writer.close()
    return pushes, bare


def measure(settings: Settings) -> list[Figure]:
    """Measures all stages, prints the table."""
    with tempfile.TemporaryDirectory() as temporary, pinned():
        folder = Path(temporary)
        furnish(folder)
        make_clips(folder / "clips")
        recipe = clips_recipe(folder, folder / "clips", epochs=1000)
        stages = Stages(folder, recipe, settings.clips)
        listed = stages.all()
        times: dict[str, tuple[list[float], list[float]]] = {stage.name: ([], []) for stage in listed}
        for _ in range(settings.rounds + 1):
            for stage in listed:
                for function, found in zip((stage.run, stage.floor), times[stage.name], strict=True):
                    found.append(_ms_per_call(function, stage.inputs))
        times["push"] = measure_push(folder, recipe, 4 * settings.rounds)
        in_worker, worker_s = watch_worker(stages.maker, settings.rounds * len(stages.files))
        flac_gains = measure_flac_decoder(stages.maker, settings.rounds, len(stages.files))
    medians = {name: (statistics.median(a[1:]), statistics.median(b[1:])) for name, (a, b) in times.items()}
    print(f"{'stage':<24}{'share':>8}{'ms':>9}{'floor ms':>10}{'ratio':>7}  floor")
    figures = []
    for stage in [*listed, Stage("push", print, print, "RPUSH", ())]:
        ms, floor_ms = medians[stage.name]
        share = 100 * in_worker[stage.name] / worker_s
        shown = f"{share:7.1f}%" if share else " " * 8
        print(f"{stage.name:<24}{shown}{ms:9.3f}{floor_ms:10.3f}{ms / floor_ms:7.2f}  {stage.floor_name}")
        figures += [
            Figure(f"{stage.name}, share", share, "%"),
            Figure(stage.name, ms, "ms"),
            Figure(f"{stage.name} / {stage.floor_name}", ms / floor_ms, "x"),
        ]
    print(f"{'all else':<24}{100 * (1 - in_worker.total() / worker_s):7.1f}%")
    gain = statistics.median(flac_gains)
    print(f"\nwithout the FLAC decoder a worker takes {gain:.2f} times as long "
          f"({min(flac_gains):.2f} to {max(flac_gains):.2f} over the rounds)")  # fmt: skip
    return [*figures, Figure("worker without the FLAC decoder / worker", gain, "x")]


def measure_flac_decoder(maker: SampleMaker, rounds: int, samples: int) -> list[float]:
    """How many times as long a worker takes when libsndfile decodes its FLAC files, by rounds taken in turn."""

    def time_s(start: int) -> float:
        started = time.process_time()
        maker.make_chunk(start, start + samples)
        return time.process_time() - started

    ratios, name = [], "open_mono_flac"
    decoder = getattr(waveform_module, name)
    for number in range(rounds):
        with_decoder_s = time_s(number * samples)
        setattr(waveform_module, name, lambda source: None)
        try:
            ratios.append(time_s(number * samples) / with_decoder_s)
        finally:
            setattr(waveform_module, name, decoder)
    return ratios


WATCHED: dict[str, list[tuple[Any, str]]] = {
    "plan, transcript": [
        (Plan, "draw"),
        (Plan, "generator"),
        (Recordings, "__getitem__"),
        (TranscriptEncoder, "encode"),
    ],
    "decode": [(data_processor, "load_waveform")],
    "speed": [(augmentation_registry, "change_speed")],
    "pitch_shift": [(augmentation_registry, "shift_pitch")],
    "far_field": [(augmentation_registry, "add_far_field")],
    "background_noise": [(NoiseRecordings, "crop"), (augmentation_registry, "mix_background")],
    "color_noise": [(augmentation_registry, "add_color_noise")],
    "down_upsampling": [(augmentation_registry, "down_upsample")],
    "speech_enhancement": [(augmentation_registry, "enhance_speech")],
    "masking": [(augmentation_registry, "mask_log_mel")],
    "log-mel": [(data_processor, "log_mel")],
    "encode": [(sample_worker, "encode_sample")],
}
"""Stage → what the stopwatch stands around: names that a worker calls."""


def watch_worker(maker: SampleMaker, samples: int) -> tuple[Counter[str], float]:
    """Seconds that a worker spends in each stage over a number of samples, and in all."""
    spent: Counter[str] = Counter()

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **named)
            spent[stage] += time.perf_counter() - started  # type: ignore[assignment]  # seconds, not a count
            return result

        return call

    with contextlib.ExitStack() as stack:
        for stage, places in WATCHED.items():
            for place, name in places:
                function = getattr(place, name)
                setattr(place, name, timed(stage, function))
                stack.callback(setattr, place, name, function)
        maker.make_chunk(0, 4 * CHUNK)  # decodes the noise, fills caches
        spent.clear()
        started = time.perf_counter()
        maker.make_chunk(4 * CHUNK, 4 * CHUNK + samples)
        return spent, time.perf_counter() - started


def _ms_per_call(function: Callable[[Any], object], inputs: Sequence[Any]) -> float:
    started = time.perf_counter()
    for value in inputs:
        function(value)
    return (time.perf_counter() - started) * 1000 / len(inputs)


def main() -> None:
    """Measures, prints, writes."""
    settings = tyro.cli(Settings, description=__doc__)
    write_json(measure(settings), settings.json)


if __name__ == "__main__":
    main()
