"""The stream's recipe: all that its samples are made from, and the tasks that workers get."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import audioaugmentations
from config import Config, RedisConfig
from corpus.recordings import Recording, Recordings
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from producing.plan import fingerprint, make_plan
from producing.sample_worker import SampleTask, WorkerRecipe

MAX_RECORDINGS = 20
"""Recordings in a row that may fail to decode before the run stops: then the files are gone, not bad."""


@dataclass(frozen=True)
class StreamRecipe(WorkerRecipe):
    """All that the stream is made from: what the workers get, and the recordings, which stay with the producer."""

    recordings: Recordings

    def for_workers(self) -> WorkerRecipe:
        """The part that the workers get. They do not speak to Redis, and its password does not leave this machine."""
        parts = {each.name: getattr(self, each.name) for each in dataclasses.fields(WorkerRecipe)}
        return WorkerRecipe(**{**parts, "config": dataclasses.replace(self.config, redis=RedisConfig())})

    def tasks(self, start: int, stop: int) -> list[SampleTask]:
        """What the plan says of positions `start` to `stop` - 1."""
        draws = [self.plan.draw(position) for position in range(start, stop)]
        return [SampleTask(draw, (self._recording(draw.row),)) for draw in draws]

    def replacing(self, position: int) -> SampleTask:
        """The sample at `position` once more, when its recording can't be decoded: from the others drawn for that."""
        rows = [self.plan.replacement(position, attempt) for attempt in range(1, MAX_RECORDINGS)]
        return SampleTask(self.plan.draw(position), tuple(self._recording(row) for row in rows))

    def _recording(self, row: int) -> Recording:
        recording = self.recordings[row]
        audio = absolute_path(recording.audio)
        return recording if audio == recording.audio else dataclasses.replace(recording, audio=audio)


def absolute_path(path: str) -> str:
    """`path` as an absolute one, so that a worker with another working directory finds it too; a URL as it is."""
    return path if os.path.isabs(path) or "://" in path else os.path.abspath(path)


def make_recipe(config: Config, recordings: Recordings, spec: FeatureSpec, encoder: TranscriptEncoder) -> StreamRecipe:
    """The recipe of the stream of these recordings. Makes what the augmentations need once, such as simulated rooms."""
    noise = [absolute_path(entry) for entry in config.audio_augmentation.bg_noise_file_list]
    augmentation = dataclasses.replace(config.audio_augmentation, bg_noise_file_list=noise)
    config = dataclasses.replace(config, audio_augmentation=augmentation)
    audioaugmentations.prepare(augmentation, Path(config.data.cache_dir))
    return StreamRecipe(
        config=config,
        plan=make_plan(config, recordings),
        spec=spec,
        encoder=encoder,
        fingerprint=fingerprint(config, recordings, spec, encoder, audioaugmentations.fingerprint(augmentation)),
        outside_facts=audioaugmentations.outside_facts(augmentation),
        prepared=audioaugmentations.prepared_files(augmentation, Path(config.data.cache_dir)),
        recordings=recordings,
    )
