"""The preview of positions of the plan: exactly the samples that the producer makes there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from audio.audio_file import RecordingError
from common.errors import UserError
from common.redaction import without_secrets
from config import Config
from corpus.formats import find_manifest
from corpus.recordings import Recording
from corpus.scan import load_recordings
from data_processor import SampleSettings, make_sample
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from features.log_mel import log_mel
from features.sample import Sample
from pages.preview_page import Chapter, Section
from producing.plan import ORIGINAL_VARIANT, Draw
from producing.recipe import StreamRecipe, make_recipe
from producing.worker_pool import worker_count
from tools.augmentation_words import Sources
from tools.preview_cards import CardMaker, Copy, levels_of
from tools.watched_augmentations import CopyWatcher, WatchedAugmentations


def preview_positions(config: Config, positions: Sequence[int]) -> list[Chapter]:
    """The chapters of these positions.

    Raises:
        UserError: the plan has no such position, no recording for it can be decoded; and as the producer.
    """
    recipe = plan_stream(config)
    planned = len(recipe.plan)
    for position in positions:
        if not 0 <= position < planned:
            raise UserError(f"--position {position}: expected a position of the plan, 0 to {planned - 1}")
    maker = PositionPreview(recipe)
    return [maker.chapter(position) for position in positions]


def plan_stream(config: Config) -> StreamRecipe:
    """The producer's recipe; the scan is the producer's too, where it has made one in the same cache folder.

    Raises:
        UserError: as the producer.
    """
    find_manifest(config.data.train_manifest)
    spec = load_feature_spec(config.model.model_name)
    spec.check_sample_rate(config.audio_augmentation.sample_rate)
    encoder = load_transcript_encoder(config.model)
    report = Path(config.data.cache_dir) / "preview_rejected.jsonl"  # the run's own is the producer's
    recordings = load_recordings(
        config.data.train_manifest, config.data, spec, encoder, report=report, processes=worker_count(config)
    )
    return make_recipe(config, recordings, spec, encoder)


class PositionPreview:
    """Makes the chapters of positions."""

    def __init__(self, recipe: StreamRecipe) -> None:
        config = recipe.config
        cache_dir = Path(config.data.cache_dir)
        self._recipe = recipe
        self._augmentations = WatchedAugmentations(config.audio_augmentation, cache_dir, recipe.spec.window_samples)
        self._sources = Sources(config.audio_augmentation, cache_dir)

    def make(self, position: int) -> tuple[Sample, CopyWatcher, Recording, list[str]]:
        """The sample that the producer makes, how it was made, of which recording, and what could not be decoded.

        Raises:
            UserError: none of the recordings drawn for it can be decoded.
        """
        recipe, data = self._recipe, self._recipe.config.data
        settings = SampleSettings(recipe.spec, recipe.encoder, data, data.feature_dtype, recipe.fingerprint)
        (task,) = recipe.tasks(position, position + 1)
        failures = []
        for recording in (*task.recordings, *recipe.replacing(position).recordings):
            original = task.draw.variant == ORIGINAL_VARIANT
            watcher = CopyWatcher(
                self._augmentations, task.draw.turn, recipe.plan.generator(position), original=original
            )
            try:
                sample = make_sample(recording, position, settings, watcher)
            except RecordingError as error:
                failures.append(f"{recording.id} ({without_secrets(recording.audio)}) can't be decoded: {error}.")
                continue
            return sample, watcher, recording, failures
        raise UserError(f"--position {position}: none of the recordings drawn for it can be decoded; {failures[0]}")

    def chapter(self, position: int) -> Chapter:
        """The chapter of a position.

        Raises:
            UserError: as `make`.
        """
        sample, watcher, recording, failures = self.make(position)
        copy = Copy(watcher, sample.input_features, sample.pad_value)
        spec, samples = self._recipe.spec, max(copy.samples, len(watcher.recording))
        levels, until_s = levels_of(log_mel(watcher.recording, spec)[0]), samples / spec.sampling_rate
        maker = CardMaker(spec, self._recipe.config.audio_augmentation, self._sources, levels, until_s)
        draw = self._recipe.plan.draw(position)
        if draw.variant == ORIGINAL_VARIANT:
            cards = [maker.card(copy, "The sample: the recording as it is", window=True)]
        else:
            what = ", ".join(map(maker.title, watcher.traces)) or "no augmentation fired"
            steps = [(maker.title(trace), maker.drawn(trace)) for trace in watcher.traces]
            cards = [maker.recording_card(watcher), maker.card(copy, f"The sample: {what}", steps, window=True)]
        notes = [*failures, *(["Another recording stands in, as in the producer."] if failures else [])]
        settings = [each for trace in watcher.traces for each in maker.governing(trace)]
        section = Section("What the model gets", "", cards, settings)
        return Chapter(f"Position {position}", [section], _facts(draw, sample, recording), notes)


def _facts(draw: Draw, sample: Sample, recording: Recording) -> list[tuple[str, str]]:
    copy = "original" if draw.variant == ORIGINAL_VARIANT else f"augmented copy {draw.variant}, turn {draw.turn}"
    return [
        ("Recording", recording.id),
        ("Audio", without_secrets(recording.audio) + recording.part.suffix),
        ("Transcript", recording.transcript),
        ("Label tokens", str(len(sample.labels))),
        ("Epoch", str(draw.epoch)),
        ("Variant", copy),
        ("Duration", f"{sample.duration_s:.2f} s"),
    ]
