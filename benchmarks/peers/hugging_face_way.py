"""The usual Hugging Face way: a `datasets` table whose transform augments and extracts, behind a `DataLoader`.

The same eight augmentations by audiomentations, half of the samples without, as in our round robin. Set up in the
peer's favour: the far field convolves with impulse responses that are there already (`RoomSimulator` would take 125 ms
each), noise is in WAV files, which cost little to decode, recordings are read by soundfile (`Audio` of datasets needs
torchcodec), the worker computes on one thread, and the process that receives the batches has a core of its own.
audiomentations has no noise reduction: `scipy.signal.wiener` stands in; the masks are set on the log-mel, as ours are.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import scipy.signal
import soundfile
import torch
from audiomentations import (
    AddBackgroundNoise,
    AddColorNoise,
    Aliasing,
    ApplyImpulseResponse,
    Lambda,
    PitchShift,
    TimeStretch,
)
from torch.utils.data import DataLoader
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from audio.room_acoustics import Responses
from features.feature_spec import FeatureSpec

RATE = 16000
BATCH = 16


class Transform:
    """What `set_transform` is given: rows → augmented features and labels."""

    def __init__(self, checkpoint: Path, noise: Path, responses: Path) -> None:
        self._extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
        self._tokenizer = WhisperTokenizer.from_pretrained(checkpoint)
        self._augmentations = [
            TimeStretch(0.75, 1.5, leave_length_unchanged=False, p=1.0),
            PitchShift(-3.0, 3.0, p=1.0),
            ApplyImpulseResponse(str(responses), p=1.0),
            AddBackgroundNoise(str(noise), 12.0, 25.6, p=1.0),
            AddColorNoise(20.0, 20.0, p=1.0),
            Aliasing(2000, 8000, p=1.0),
            Lambda(lambda samples, sample_rate: scipy.signal.wiener(samples + np.float32(1e-8)), p=1.0),
            None,  # masks, on the log-mel
        ]

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"input_features": [], "labels": []}
        for path, text, turn in zip(rows["audio"], rows["text"], rows["turn"], strict=True):
            audio, _ = soundfile.read(path, dtype="float32")
            augmentation = self._augmentations[turn // 2 % 8] if turn % 2 else None
            if augmentation:
                audio = np.asarray(augmentation(audio, RATE), dtype=np.float32)
            features = self._extractor(audio, sampling_rate=RATE, return_tensors="np").input_features[0]
            if turn % 16 == 15:
                self._mask(features, len(audio) // 160)
            made["input_features"].append(features)
            made["labels"].append(self._tokenizer(text).input_ids)
        return made

    @staticmethod
    def _mask(features: np.ndarray, frames: int) -> None:
        mean = features[:, :frames].mean()
        start, low = np.random.randint(max(1, frames - 5)), np.random.randint(60)  # noqa: NPY002  # as users do
        features[:, start : start + 5] = mean
        features[low : low + 20] = mean


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stacks features and pads labels."""
    longest = max(len(sample["labels"]) for sample in samples)
    labels = torch.full((len(samples), longest), -100)
    for row, sample in zip(labels, samples, strict=True):
        row[: len(sample["labels"])] = torch.tensor(sample["labels"])
    return {"input_features": torch.from_numpy(np.stack([s["input_features"] for s in samples])), "labels": labels}


class HuggingFaceWay:
    """One DataLoader worker on one core; the process that receives its batches may use any."""

    def __init__(
        self, files: list[Path], texts: list[str], checkpoint: Path, noise: Path, responses: Path,
        cores: set[int], core: int,
    ) -> None:  # fmt: skip
        """
        Args:
            files: the clips.
            texts: their transcripts.
            checkpoint: folder of the model.
            noise: folder of noise recordings.
            responses: folder of impulse responses.
            cores: for this process while it receives.
            core: for the worker, and for this process otherwise.
        """
        self._cores, self._core = cores, core
        rows = 16 * len(files)
        table = datasets.Dataset.from_dict(
            {
                "audio": [str(files[n % len(files)]) for n in range(rows)],
                "text": [texts[n % len(texts)] for n in range(rows)],
                "turn": list(range(rows)),
            }
        )
        table.set_transform(Transform(checkpoint, noise, responses))

        def start(worker: int) -> None:
            os.sched_setaffinity(0, {core})
            torch.set_num_threads(1)

        loader = DataLoader(
            table,
            batch_size=BATCH,
            num_workers=1,
            collate_fn=collate,
            worker_init_fn=start,
        )
        self._batches = iter(loader)

    def before(self) -> None:
        """Takes what was made ahead, so that a round begins with nothing in hand."""
        os.sched_setaffinity(0, self._cores)
        for _ in range(3):
            next(self._batches)

    def after(self) -> None:
        """Waits until the worker has made ahead what it may: it must not work in another's round."""
        os.sched_setaffinity(0, {self._core})
        (worker,) = (psutil.Process(child.pid) for child in multiprocessing.active_children() if child.pid)
        used, now = -1.0, 0.0
        while now > used:
            used = now
            time.sleep(0.5)
            now = worker.cpu_times().user

    def close(self) -> None:
        """Ends the worker."""
        del self._batches

    def make(self, count: int) -> int:
        """Receives batches until `count` samples are there; returns how many."""
        made = 0
        while made < count:
            made += len(next(self._batches)["labels"])
        return made


def write_responses(bank: Responses, spec: FeatureSpec, folder: Path) -> None:
    """Writes impulse responses as files, for `ApplyImpulseResponse`."""
    folder.mkdir()
    for distance_m, responses in bank.items():
        for room, response in enumerate(responses):
            soundfile.write(folder / f"{distance_m:g}m_{room}.wav", response, spec.sampling_rate, subtype="FLOAT")
