"""What was found in one corpus, as values that become JSON or text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.redaction import without_secrets
from config import GIB, Config
from corpus.recordings import Recordings
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from producing.plan import make_plan
from tools.checking.audio_facts import CANCELLED, CLIPPED, SILENT
from tools.checking.duplicates import Repeats, find_repeats
from tools.checking.surveyor import kind_of
from tools.checking.tallies import EXAMPLES, Examples, Survey

TRAIN, EVAL = "train", "eval"
EXTREMES = 10
"""Longest and shortest recordings that are listed."""
EXTREME_RATES = 5
"""Recordings with the most and the fewest tokens per second that are listed."""
EDGES_S = (0.0, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 25)
"""Where bars of the histogram of durations begin."""
RARE_SHARE = 1 / 2000
"""A character that stands in at most this share of the transcripts, or in one, is rare."""
RARE_LISTED = 30
MEGABYTE = 1e6


@dataclass(frozen=True)
class Findings:
    """All that was found in a corpus."""

    name: str
    role: str
    """`TRAIN` or `EVAL`."""
    rejected_file: Path
    """A JSON line for each rejected row."""
    recordings: Recordings | None
    """None: not a single row can be used."""
    survey: Survey

    def example(self, index: int) -> dict[str, Any]:
        """A recording, as the report shows it."""
        assert self.recordings is not None
        recording = self.recordings[index]
        audio = without_secrets(recording.audio)
        return {"row": recording.row, "id": recording.id, "audio": audio, "transcript": recording.transcript}


def report_corpus(
    found: Findings, config: Config, spec: FeatureSpec, encoder: TranscriptEncoder, samples_per_second: float
) -> dict[str, Any]:
    """Everything about one corpus; keys that end in `_s` are in seconds."""
    report = {"manifest": found.name, "role": found.role, **_rejected(found, config)}
    rows = found.survey.rows
    if found.recordings is None or not len(rows):
        return report
    readable = rows[np.isfinite(rows["duration_s"])]
    duplicates, contradictions = find_repeats(rows)
    return {
        **report,
        "hours": float(readable["duration_s"].sum(dtype=np.float64)) / 3600,
        "hours_by_manifest": found.recordings.hours,
        "duration_s": _spread(readable["duration_s"]),
        "duration_histogram": _histogram(readable["duration_s"], config, spec),
        "audio_formats": _audio_formats(found.survey),
        "languages": _languages(found.survey, config),
        "label_tokens": {**_spread(rows["tokens"]), "limit": encoder.max_tokens},
        **_extremes(found),
        "characters": _characters(found),
        "duplicates": _repeats(found, duplicates),
        "same_audio_other_transcript": _repeats(found, contradictions),
        "audio_not_compared": int((rows["audio"] == 0).sum()),
        "decoding": _decoding(found),
        "failures": [{"reason": kind, **_examples(found, some)} for kind, some in _by_count(found.survey.failures)],
        "redis": _redis(readable, config),
        "epoch": _epoch(found.recordings, config, samples_per_second) if found.role == TRAIN else None,
    }


def _rejected(found: Findings, config: Config) -> dict[str, Any]:
    """Rows that the scan refuses, by kind of reason, and whether that is too many."""
    reasons: dict[str, dict[str, Any]] = {}
    with found.rejected_file.open(encoding="utf-8") as lines:
        for line in lines:
            rejection = json.loads(line)
            kind = kind_of(rejection["reason"])
            counted = reasons.setdefault(kind, {"reason": kind, "count": 0, "examples": []})
            counted["count"] += 1
            if len(counted["examples"]) < EXAMPLES:
                counted["examples"].append(rejection)
    rejected = sum(counted["count"] for counted in reasons.values())
    usable = len(found.recordings) if found.recordings else 0
    late = sum(examples.count for examples in found.survey.failures.values())
    rows, allowed = usable + rejected, config.data.max_rejected_fraction
    return {
        "rows": rows,
        "recordings": usable,
        "rejected": rejected,
        "rejected_fraction": (rejected + late) / rows,
        "max_rejected_fraction": allowed,
        "too_many_rejected": usable == late or rejected + late > allowed * rows,
        "rejected_by_reason": sorted(reasons.values(), key=lambda counted: -counted["count"]),
        "rejected_file": str(found.rejected_file),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    percentiles = np.percentile(values, [5, 50, 95])
    names = {"min": values.min(), "p5": percentiles[0], "median": percentiles[1], "mean": values.mean(dtype=np.float64),
             "p95": percentiles[2], "max": values.max()}  # fmt: skip
    return {name: float(value) for name, value in names.items()}


def _histogram(durations_s: np.ndarray, config: Config, spec: FeatureSpec) -> list[dict[str, float]]:
    longest_s = min(config.data.max_duration_s, float(spec.chunk_length_s))
    edges = np.array([edge for edge in EDGES_S if edge < longest_s] + [longest_s])
    clipped = np.clip(durations_s.astype(np.float64), 0, longest_s)  # longer ones are among the failures
    counts, seconds = np.histogram(clipped, edges)[0], np.histogram(clipped, edges, weights=clipped)[0]
    return [
        {"from_s": float(low), "to_s": float(high), "recordings": int(count), "hours": float(total) / 3600}
        for low, high, count, total in zip(edges[:-1], edges[1:], counts, seconds, strict=True)
    ]


def _audio_formats(survey: Survey) -> list[dict[str, int]]:
    return [
        {"sampling_rate_hz": rate, "channels": channels, "recordings": count}
        for (rate, channels), count in survey.audio_formats.most_common()
    ]


def _languages(survey: Survey, config: Config) -> list[dict[str, Any]]:
    counts = np.bincount(survey.rows["language"], minlength=len(survey.languages))
    seconds = np.bincount(survey.rows["language"], np.nan_to_num(survey.rows["duration_s"]))
    default = config.model
    found = [
        {"language": language or default.language, "task": task or default.task, "from_manifest": bool(language),
         "recordings": int(count), "hours": float(total) / 3600}
        for (language, task), count, total in zip(survey.languages, counts, seconds, strict=True)
    ]  # fmt: skip
    return sorted(found, key=lambda each: -each["recordings"])


def _extremes(found: Findings) -> dict[str, Any]:
    """The recordings with the longest and shortest duration, and with the most and fewest label tokens per second."""
    rows = found.survey.rows
    durations_s = rows["duration_s"].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = rows["tokens"] / durations_s

    def examples(indices: np.ndarray) -> list[dict[str, Any]]:
        return [
            {**found.example(index), "duration_s": durations_s[index], "tokens": int(rows["tokens"][index])}
            for index in indices.tolist()
        ]

    readable = np.flatnonzero(np.isfinite(durations_s))
    by_duration = readable[np.argsort(durations_s[readable], kind="stable")]
    by_rate = readable[np.argsort(rates[readable], kind="stable")]
    return {
        "longest": examples(by_duration[::-1][:EXTREMES]), "shortest": examples(by_duration[:EXTREMES]),
        "most_tokens_per_second": examples(by_rate[::-1][:EXTREME_RATES]),
        "fewest_tokens_per_second": examples(by_rate[:EXTREME_RATES]),
    }  # fmt: skip


def _characters(found: Findings) -> dict[str, Any]:
    survey = found.survey
    limit = max(1, int(RARE_SHARE * len(survey.rows)))
    rare = sorted((count, character) for character, count in survey.characters.items() if count <= limit)
    listed = [
        {"character": character, "code": f"U+{ord(character):04X}",
         "name": unicodedata.name(character, "no name").lower(),
         "recordings": count, "example": found.example(survey.first_seen[character])}
        for count, character in rare[:RARE_LISTED]
    ]  # fmt: skip
    return {"different": len(survey.characters), "rare": len(rare), "rare_at_most": limit, "listed": listed}


def _repeats(found: Findings, repeats: Repeats) -> dict[str, Any]:
    pairs = [{"first": found.example(first), "again": found.example(again)} for first, again in repeats.examples]
    return {"count": repeats.count, "examples": pairs}


def _examples(found: Findings, examples: Examples) -> dict[str, Any]:
    some = [{**found.example(index), **({"reason": why} if why else {})} for index, why in examples.first]
    return {"count": examples.count, "examples": some}


def _by_count(kinds: dict[str, Examples]) -> Iterable[tuple[str, Examples]]:
    return sorted(kinds.items(), key=lambda kind: -kind[1].count)


def _decoding(found: Findings) -> dict[str, Any]:
    survey = found.survey
    findings = {name: _examples(found, survey.findings.get(name, Examples())) for name in (CLIPPED, SILENT, CANCELLED)}
    return {"decoded": survey.decoded, "all": survey.decoded == len(survey.rows), **findings}


def _redis(rows: np.ndarray, config: Config) -> dict[str, float]:
    """Of samples of the recordings as they are."""
    rows = rows[rows["queue"] > 0]
    hours = float(rows["duration_s"].sum(dtype=np.float64)) / 3600
    size = float(rows["queue"].sum(dtype=np.float64))
    if not hours:
        return {}
    limit_gb = config.redis.max_memory_gb
    return {
        "mb_per_hour": size / hours / MEGABYTE,
        "kb_per_sample": size / len(rows) / 1000,
        "max_memory_gb": limit_gb,
        "hours_that_fit": limit_gb * GIB * hours / size,
    }


def _epoch(recordings: Recordings, config: Config, samples_per_second: float) -> dict[str, float]:
    plan = make_plan(config, recordings)
    return {
        "samples": plan.samples_per_epoch,
        "samples_per_second": samples_per_second,
        "lasts_s": plan.samples_per_epoch / samples_per_second,
        "epochs": config.data.epochs,
        "all_epochs_last_s": len(plan) / samples_per_second,
    }
