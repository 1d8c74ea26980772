"""The preview of audio files: the original, and every augmentation with every option."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from audio.audio_file import RecordingError
from audio.augmentation_registry import AUGMENTATIONS, enabled_rows, extra_augmentations
from audio.part import WHOLE, Part
from audio.waveform import load_waveform, recording_duration_s
from audioaugmentations import Step
from common.errors import UserError
from common.progress_bar import progress_bar
from common.redaction import without_secrets
from config import AudioAugmentationConfig, Config
from features.feature_spec import FeatureSpec, load_feature_spec
from features.log_mel import log_mel
from pages.preview_page import Chapter, Section
from tools.augmentation_words import Sources, words_of
from tools.preview_cards import GROUP, CardMaker, Copy, levels_of, setting
from tools.watched_augmentations import CopyWatcher, WatchedAugmentations

OPENAI_MODEL = re.compile(r"openai/whisper-(tiny|base|small|medium|large(?P<bins128>-v3(-turbo)?)?|large-v2)(\.en)?")
"""OpenAI's models, whose features are known: looking at augmentations needs no network."""


@dataclass(frozen=True)
class _Made:
    """An augmentation with all its options."""

    name: str
    copies: list[Copy]
    too_long: list[Step]
    """Options that would make the recording longer than the window."""


class FilePreview:
    """Makes the chapters of audio files."""

    def __init__(self, config: Config) -> None:
        """
        Raises:
            UserError: the model's features, the noise, a transform or the cache folder can't be used.
        """
        # One at a time, in turn: `multiple_aug` decides which come together, not what each does.
        augmentation = replace(config.audio_augmentation, multiple_aug=False)
        self._config = replace(config, audio_augmentation=augmentation)
        self._spec = feature_spec(config.model.model_name)
        self._spec.check_sample_rate(augmentation.sample_rate)
        cache_dir = Path(config.data.cache_dir)
        self._augmentations = WatchedAugmentations(augmentation, cache_dir, self._spec.window_samples)
        self._sources = Sources(augmentation, cache_dir)

    def chapter(self, number: int, file: str) -> Chapter:
        """The chapter of an audio file.

        Args:
            number: of the file, from 0; with the seed it decides what is random.
            file: path or URL.

        Raises:
            UserError: it can't be decoded.
        """
        try:
            waveform, notes = self._load(file)
        except RecordingError as error:
            raise UserError(f"cannot preview {without_secrets(file)}: {error}") from error
        original = self._copy(waveform, 0, np.random.default_rng(), original=True)
        made = [self._augmented(waveform, name, number) for name in self._augmentations.enabled]
        longest = max(copy.samples for each in made for copy in [original, *each.copies]) if made else len(waveform)
        maker = CardMaker(
            self._spec, self._config.audio_augmentation, self._sources,
            levels_of(original.features), longest / self._spec.sampling_rate,
        )  # fmt: skip
        with progress_bar(1 + sum(len(each.copies) for each in made), "picture", Path(file).name) as bar:
            sections = [self._original(original, maker)]
            bar.update()
            for each in made:
                sections.append(self._section(each, maker))
                bar.update(len(each.copies))
        duration = f"{len(waveform) / self._spec.sampling_rate:.2f} s"
        return Chapter(Path(file).name, sections, [("File", without_secrets(file)), ("Duration", duration)], notes)

    def _load(self, file: str) -> tuple[np.ndarray, list[str]]:
        data = self._config.data
        duration_s = recording_duration_s(file, data)
        longest_s = min(data.max_duration_s, float(self._spec.chunk_length_s))
        if duration_s <= longest_s:
            return load_waveform(file, self._spec, data, WHOLE), []
        note = (
            f"The file is {duration_s:.1f} s long. Shown are its first {longest_s:g} s: training takes no longer "
            "recordings (data.max_duration_s, and the model's window)."
        )
        return load_waveform(file, self._spec, data, Part(0.0, longest_s)), [note]

    def _augmented(self, waveform: np.ndarray, name: str, number: int) -> _Made:
        enabled, options = self._augmentations.enabled, self._augmentations.options[name]
        made = _Made(name, [], [])
        for index, option in enumerate(options):
            turn = enabled.index(name) + index * len(enabled)
            rng = np.random.default_rng((self._config.data.seed, number, turn))
            copy = self._copy(waveform, turn, rng)
            if copy.watcher.traces[0].step.option == option:
                made.copies.append(copy)
            else:
                made.too_long.append(Step(name, option))
        return made

    def _copy(self, waveform: np.ndarray, turn: int, rng: np.random.Generator, *, original: bool = False) -> Copy:
        """What `data_processor.make_sample` does, on a waveform that may be a part of a file."""
        watcher = CopyWatcher(self._augmentations, turn, rng, original=original)
        features, pad_value = log_mel(watcher.augment_waveform(waveform), self._spec)
        features = watcher.augment_log_mel(features).astype(self._config.data.feature_dtype)
        return Copy(watcher, features, pad_value)

    def _original(self, copy: Copy, maker: CardMaker) -> Section:
        data = self._config.data
        settings = [setting(data, "data", name) for name in ("include_original", "peak_normalize", "channel")]
        card = maker.card(copy, "Original", window=True)
        spec = self._spec
        text = f"The recording in one channel at {spec.sampling_rate} Hz, as {spec.num_mel_bins} mel bins in the end."
        return Section("Original", text, [card], settings)

    def _section(self, made: _Made, maker: CardMaker) -> Section:
        config = self._config.audio_augmentation
        row = next(row for row in enabled_rows(config) if row.name == made.name)
        words = words_of(row, config)
        notes = []
        if made.too_long:
            left_out = ", ".join(map(str, made.too_long))
            notes.append(f"Passed over, as the recording would be longer than the model's window: {left_out}.")
        cards = [maker.card(copy, maker.drawn(copy.watcher.traces[0])) for copy in made.copies]
        settings = [setting(config, GROUP, name) for name in (row.prob_field, *words.fields)]
        return Section(words.title, words.text, cards, settings, notes)


def feature_spec(model_name: str) -> FeatureSpec:
    """What the log-mel of a model looks like.

    Raises:
        ModelFilesError: it is none of OpenAI's, and there is no such model, or it is not a Whisper model.
    """
    known = OPENAI_MODEL.fullmatch(model_name)
    return FeatureSpec(128 if known["bins128"] else 80, 16000, 400, 160, 30) if known else load_feature_spec(model_name)


def left_out(config: AudioAugmentationConfig) -> list[tuple[str, str]]:
    """The augmentations that do not take part, and why."""
    reasons = []
    for row in [*AUGMENTATIONS.values(), *extra_augmentations(config)]:
        title = words_of(row, config).title
        if not row.probability(config):
            reasons.append((title, f"{GROUP}.{row.prob_field} is 0"))
        elif not row.is_enabled(config):
            reasons.append((title, f"{GROUP}.{row.needed_field} is empty: name files or folders there to hear it"))
    return reasons
