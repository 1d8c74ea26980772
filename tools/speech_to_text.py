"""From audio files to transcripts with times: batches over files, windows over long ones."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from audio.audio_file import RecordingError
from common.errors import UserError, one_line
from storage.remote_files import SourceError
from tools.long_audio import AudioBlocks

logger = logging.getLogger(__name__)

BLOCK_S = 600.0
"""Audio of a file in memory at a time, in seconds."""
QUIET_S = 0.2
"""Windows without timestamps are cut in the middle of the quietest stretch of this length, in seconds."""
WITHOUT_SPACES = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages whose words no spaces separate. Source: `split_to_word_tokens` of openai/whisper's tokenizer.py."""
SETTINGS_FILE = "trainer_config.json"
"""What the trainer of this project leaves beside a model."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech."""

    start: float
    """In seconds from the begin of the file."""
    end: float
    text: str


@dataclass
class Transcript:
    """What is said in a file."""

    file: str
    segments: list[Segment] = field(default_factory=list)
    failure: str = ""
    """Why the file could not be transcribed; empty: it was."""
    separator: str = " "
    """What stands between the texts of two segments."""

    @property
    def text(self) -> str:
        """All of it."""
        return self.separator.join(segment.text for segment in self.segments if segment.text)


@dataclass
class _Job:
    """A file that is being transcribed."""

    index: int
    blocks: AudioBlocks
    transcript: Transcript
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """What of it is decoded next."""
    is_done: bool = False


class Transcriber:
    """A Whisper model that transcribes files as `generate` of Hugging Face does, greedily.

    A file that fits the model's window is decoded as the training evaluates it. A longer one needs timestamps, by which
    `generate` goes on from window to window (sequential long-form); without them it is cut where it is quiet.
    """

    def __init__(
        self, model: str, language: str = "", task: str = "", timestamps: bool | None = None, batch_size: int = 8
    ) -> None:
        """
        Args:
            model: folder or Hub name.
            language: as Whisper names it; empty: what the model was trained on, or else each file's own is detected.
            task: transcribe or translate; empty: what the model was trained for.
            timestamps: True: always; False: never; None: for files longer than the window, and where the model's
                generation config asks for them.
            batch_size: files that are decoded together.

        Raises:
            UserError: there is no such model, or it does not know the language.
        """
        try:
            self._model = WhisperForConditionalGeneration.from_pretrained(model)
            self._processor = WhisperProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load --model {model!r} as a Whisper model: {one_line(error)}") from error
        self._model = self._model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._extractor = self._processor.feature_extractor
        self._rate, self._window = int(self._extractor.sampling_rate), int(self._extractor.n_samples)
        self._timestamps, self._batch_size = timestamps, batch_size
        self._peak_normalize = _was_peak_normalized(Path(model))
        self._prompt = self._check_prompt(language, task)
        spoken = language or getattr(self._model.generation_config, "language", None) or ""
        self._separator = "" if _language_code(spoken) in WITHOUT_SPACES else " "

    def transcribe(
        self, files: Sequence[str], progress: Callable[[float], object] = lambda seconds: None
    ) -> Iterator[tuple[int, Transcript]]:
        """Transcribes files, several at a time.

        Args:
            files: paths or URLs.
            progress: called with each stretch of audio that is done, in seconds.

        Yields:
            The index of a file in `files`, and its transcript, as soon as it is done. Files that can't be read have a
            `failure`.
        """
        waiting = deque(enumerate(files))
        active: list[_Job] = []
        while waiting or active:
            while waiting and len(active) < self._batch_size:
                index, name = waiting.popleft()
                blocks = AudioBlocks(name, self._rate, self._peak_normalize)
                active.append(_Job(index, blocks, Transcript(name, separator=self._separator)))
            self._advance(active, progress)
            for job in [job for job in active if job.is_done]:
                active.remove(job)
                job.blocks.close()
                yield job.index, job.transcript

    def _advance(self, jobs: Sequence[_Job], progress: Callable[[float], object]) -> None:
        """Decodes the next block of each file."""
        for job in jobs:
            try:
                job.waveform = job.blocks.fill(BLOCK_S)
            except (RecordingError, SourceError) as error:
                job.transcript.failure, job.is_done = one_line(error), True
                continue
            if len(job.waveform) > self._window and self._timestamps is False:
                job.waveform = job.waveform[: self._quiet_place(job.waveform)]
        ready = [job for job in jobs if not job.is_done]
        for chosen, decode in (
            ([job for job in ready if len(job.waveform) <= self._window], self._decode_windows),
            ([job for job in ready if len(job.waveform) > self._window], self._decode_long),
        ):
            if chosen:
                for job, segments in zip(chosen, decode([job.waveform for job in chosen]), strict=True):
                    progress(self._accept(job, segments))

    def _accept(self, job: _Job, segments: list[Segment]) -> float:
        """Takes over the segments of a block; returns how many seconds of audio are done with that.

        At the end of a block that is not the file's last, the audio was cut somewhere: what lies in its last window is
        decoded again with what follows.
        """
        samples, begin_s = len(job.waveform), job.blocks.start_s
        job.is_done = job.blocks.ends_with(samples)
        if not job.is_done and samples > self._window:
            limit = samples - self._window
            segments = [segment for segment in segments if segment.end * self._rate <= limit]
            samples = round(segments[-1].end * self._rate) if segments else limit
        job.transcript.segments += [Segment(begin_s + s.start, begin_s + s.end, s.text) for s in segments if s.text]
        job.blocks.drop(samples)
        return samples / self._rate

    def _quiet_place(self, waveform: np.ndarray) -> int:
        """Samples up to the middle of the quietest stretch in the second half of the window."""
        window, quiet = self._window, round(QUIET_S * self._rate)
        energy = np.cumsum(np.square(waveform[window // 2 : window], dtype=np.float64))
        return window // 2 + int(np.argmin(energy[quiet:] - energy[:-quiet])) + quiet // 2

    def _decode_windows(self, waveforms: list[np.ndarray]) -> list[list[Segment]]:
        """Transcribes waveforms that fit the window."""
        timed = self._timestamps or (
            self._timestamps is None and bool(getattr(self._model.generation_config, "return_timestamps", False))
        )
        features = self._extractor(
            waveforms, sampling_rate=self._rate, return_tensors="pt", return_attention_mask=False
        ).input_features
        answer = self._generate(features, return_timestamps=timed, return_segments=timed)
        durations = [len(waveform) / self._rate for waveform in waveforms]
        if timed:
            return self._segments(answer["segments"], durations)
        return [
            [Segment(0.0, duration_s, self._text(tokens))] for tokens, duration_s in zip(answer, durations, strict=True)
        ]

    def _decode_long(self, waveforms: list[np.ndarray]) -> list[list[Segment]]:
        """Transcribes waveforms longer than the window, sequentially, by the timestamps that the model writes."""
        inputs = self._extractor(
            waveforms, sampling_rate=self._rate, return_tensors="pt", truncation=False,
            padding="longest", return_attention_mask=True,
        )  # fmt: skip
        answer = self._generate(
            inputs.input_features, attention_mask=inputs.attention_mask, return_timestamps=True, return_segments=True
        )
        return self._segments(answer["segments"], [len(w) / self._rate for w in waveforms])

    def _generate(self, features: torch.Tensor, **arguments: Any) -> Any:
        device, dtype = self._model.device, self._model.dtype
        if "attention_mask" in arguments:
            arguments["attention_mask"] = arguments["attention_mask"].to(device)
        with torch.inference_mode():
            return self._model.generate(features.to(device, dtype), **self._prompt, **arguments)

    def _segments(self, found: Sequence[Sequence[dict[str, Any]]], durations: Sequence[float]) -> list[list[Segment]]:
        return [
            [
                Segment(min(float(s["start"]), duration_s), min(float(s["end"]), duration_s), self._text(s["tokens"]))
                for s in segments
            ]
            for segments, duration_s in zip(found, durations, strict=True)
        ]

    def _text(self, tokens: torch.Tensor) -> str:
        return str(self._processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def _check_prompt(self, language: str, task: str) -> dict[str, Any]:
        """What `generate` is told besides what the model's generation config says."""
        known = getattr(self._model.generation_config, "lang_to_id", None) or {}
        if language and f"<|{_language_code(language)}|>" not in known:
            remedy = f"expected one of its {len(known)}, such as Bengali or bn" if known else "leave it out"
            raise UserError(f"--language {language}: the model does not know this language; {remedy}")
        return {name: value for name, value in (("language", language.lower()), ("task", task)) if value}


def _language_code(language: str) -> str:
    name = language.lower()
    return name if name in LANGUAGES else TO_LANGUAGE_CODE.get(name, name)


def _was_peak_normalized(model: Path) -> bool:
    """Whether the trainer of this project scaled recordings to a peak of 1; other models hear audio as it is."""
    for folder in (model, model.resolve().parent):  # a checkpoint lies in the output folder
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return bool(settings.get("data", {}).get("peak_normalize", True))
    return False
