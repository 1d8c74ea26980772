"""The part of a survey that worker processes do: looks at a range of recordings, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from config import DataConfig
from corpus.recordings import Recording, Recordings
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from features.log_mel import frame_count
from features.sample import Sample, encode_sample
from sample_queue.memory import allocated
from storage.audio_sources import URLS_AT_ONCE, reading_ahead
from storage.remote_files import is_url
from storage.row_group_cache import parse_locator
from tools.checking.audio_facts import AudioFacts, AudioInspector, digest_of
from tools.checking.tallies import ROW, Examples, Survey


class Surveyor:
    """Surveys ranges of recordings. Each worker process has one."""

    def __init__(self, data: DataConfig, spec: FeatureSpec, encoder: TranscriptEncoder, deep: bool) -> None:
        """
        Args:
            data: how recordings are read, and the number format of features.
            spec: the model's feature settings.
            encoder: counts label tokens.
            deep: whether every recording is decoded.
        """
        self._data, self._spec, self._encoder, self._deep = data, spec, encoder, deep
        self._inspector = AudioInspector(spec, data, deep=deep)
        self._overhead = _sample_overhead(spec, data.feature_dtype)

    def survey(self, recordings: Recordings, start: int, stop: int, to_decode: frozenset[int]) -> Survey:
        """Looks at recordings `start` to `stop` - 1; those in `to_decode` are decoded, with `deep` all.

        Raises:
            SourceError: a store of recordings can't be reached.
        """
        found = Survey(np.zeros(stop - start, ROW))
        some = [recordings[index] for index in range(start, stop)]
        decode = [self._deep or index in to_decode for index in range(start, stop)]
        for index, (recording, facts) in enumerate(zip(some, self._inspect(some, decode), strict=True), start):
            self._add(found, found.rows[index - start : index - start + 1], index, recording, facts)
        return found

    def _inspect(self, recordings: Sequence[Recording], decode: Sequence[bool]) -> Iterator[AudioFacts]:
        """The audio of each, in order; in threads where there are URLs to ask."""
        at_urls = any(is_url(recording.audio) and not parse_locator(recording.audio) for recording in recordings)
        with ThreadPoolExecutor(URLS_AT_ONCE) as threads:  # it starts no thread before there is something to do
            yield from (threads.map if at_urls else map)(self._inspect_one, recordings, decode)

    def _inspect_one(self, recording: Recording, decode: bool) -> AudioFacts:
        if not decode:
            return self._inspector.inspect(recording, decode=False)
        with reading_ahead([recording.audio], self._data):  # it is opened several times
            return self._inspector.inspect(recording, decode=True)

    def _add(self, found: Survey, row: np.ndarray, index: int, recording: Recording, facts: AudioFacts) -> None:
        language = (recording.language, recording.task)
        if language not in found.languages:
            found.languages.append(language)
        tokens = len(self._encoder.encode(recording.transcript))
        payload = self._payload_bytes(recording, facts, tokens)
        row[0] = (
            facts.duration_s, facts.digest, digest_of(recording.transcript.encode()), tokens,
            allocated(payload) if payload else 0, found.languages.index(language),
        )  # fmt: skip
        found.decoded += facts.decoded
        if facts.file:
            found.audio_formats[facts.file.sampling_rate, facts.file.channels] += 1
        for character in set(recording.transcript) - {" "}:
            found.characters[character] += 1
            found.first_seen.setdefault(character, index)
        for name in facts.findings:
            found.findings.setdefault(name, Examples()).add(index)
        if facts.failure:
            found.failures.setdefault(kind_of(facts.failure), Examples()).add(index, facts.failure)

    def _payload_bytes(self, recording: Recording, facts: AudioFacts, tokens: int) -> int:
        """Of the sample of the recording as it is; 0: there is none."""
        if facts.failure:
            return 0
        frames = frame_count(round(facts.duration_s * self._spec.sampling_rate), self._spec)
        features = self._spec.num_mel_bins * frames * np.dtype(self._data.feature_dtype).itemsize
        return features + 4 * tokens + self._overhead + len(recording.id.encode())


def kind_of(reason: str) -> str:
    """The kind of a reason for which a recording can't be used, without the details of the one recording."""
    kind = reason.partition(":")[0]
    before, quote, behind = kind.partition("'")
    return f"{before}'…'{behind.rpartition(quote)[2]}" if quote else kind


def _sample_overhead(spec: FeatureSpec, dtype: str) -> int:
    """Bytes of a sample besides features, labels and id."""
    features, labels = np.zeros((spec.num_mel_bins, 100), dtype), np.zeros(10, np.int32)
    sample = Sample(features, labels, 123456, "", -0.123456789012345, "original", 12.3456, 32 * "0")
    return len(encode_sample(sample)) - features.nbytes - labels.nbytes


_surveyor: Surveyor | None = None
"""The surveyor of this process; None where it is no worker."""


def start_worker(data: DataConfig, spec: FeatureSpec, encoder: TranscriptEncoder, deep: bool) -> None:
    """Called first in a worker process."""
    global _surveyor
    _surveyor = Surveyor(data, spec, encoder, deep)


def survey_range(recordings: Recordings, start: int, stop: int, to_decode: frozenset[int]) -> Survey:
    """The task of a worker process."""
    if _surveyor is None:
        raise RuntimeError("this process is no worker")
    return _surveyor.survey(recordings, start, stop, to_decode)
