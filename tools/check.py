"""Looks at a corpus before anything runs: what is in it, what is wrong with it, and what training on it takes.

    python -m tools.check train.csv --data.eval_manifest eval.csv     the same flags as for the scripts
    python -m tools.check $RUN --deep                                 decode everything, not only a sample

Without MANIFEST it looks at data.train_manifest and data.eval_manifest. Exit code 1: more rows can't be used than
data.max_rejected_fraction allows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from common import command_line
from common.errors import ConfigurationError
from common.redaction import without_secrets
from config import Config
from corpus.formats import find_manifest
from corpus.recordings import Recordings
from corpus.rejected_report import TooManyRejectedError
from corpus.scan import load_recordings
from features.feature_spec import FeatureSpec, load_feature_spec
from features.labels import TranscriptEncoder, load_transcript_encoder
from tools.checking.corpus_report import EVAL, TRAIN, Findings, report_corpus
from tools.checking.duplicates import find_shared
from tools.checking.survey import start_surveyors, survey_recordings
from tools.checking.tallies import ROW, Survey
from tools.checking.text_report import describe
from tools.checking.warnings import shared_warning, warnings_of

EXIT_REJECTED = 1


@dataclass
class Settings(Config):
    """The settings of a run, and what to check."""

    manifests: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="[MANIFEST …]")] = field(
        default_factory=list
    )
    """Manifests to look at, for training, instead of data.train_manifest. One that is data.eval_manifest is for
    evaluation."""
    json: bool = False
    """Print one JSON object instead of text; `--json` alone is enough."""
    deep: bool = False
    """Decode every recording, and fetch all audio at URLs; without it a few hundred are decoded. `--deep` alone is
    enough."""
    samples_per_second: float = 20.0
    """Speed of training that the duration of an epoch is told for, in samples per second."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_second <= 0:
            raise ConfigurationError(f"samples_per_second is {self.samples_per_second!r}: expected a number above 0")

    @property
    def roles(self) -> dict[str, str]:
        """Each manifest to look at, and what it is for; that for evaluation is the last."""
        roles = dict.fromkeys(self.manifests or [self.data.train_manifest], TRAIN)
        roles.pop(self.data.eval_manifest, None)
        return {**roles, self.data.eval_manifest: EVAL} if self.data.eval_manifest else roles


def main() -> None:
    arguments = command_line.with_flag_values(sys.argv[1:], "json", "deep")
    settings = command_line.parse(Settings, __doc__ or "", arguments)
    for manifest in settings.roles:
        find_manifest(manifest)  # mistakes are told before a model is fetched
    report = check(settings)
    print(json.dumps(report, ensure_ascii=False) if settings.json else describe(report))
    if any(corpus["too_many_rejected"] for corpus in report["corpora"]):
        sys.exit(EXIT_REJECTED)


def check(settings: Settings) -> dict[str, Any]:
    """Looks at all manifests.

    Returns:
        `corpora`, a report of each; `shared_audio`, for each two of them; `warnings`, sentences.

    Raises:
        UserError: a manifest can't be read, a store can't be reached, or the model can't be loaded.
    """
    # Not above: worker processes import this module, and have no use for the augmentations that this loads.
    from producing.worker_pool import worker_count

    spec, encoder = load_feature_spec(settings.model.model_name), load_transcript_encoder(settings.model)
    processes = worker_count(settings)
    with start_surveyors(settings.data, spec, encoder, processes=processes, deep=settings.deep) as surveyors:
        found = []
        for manifest, role in settings.roles.items():
            recordings, rejected_file = scan(manifest, settings, spec, encoder, processes)
            empty = Survey(np.zeros(0, ROW))
            survey = survey_recordings(recordings, surveyors, processes) if recordings else empty
            found.append(Findings(without_secrets(manifest), role, rejected_file, recordings, survey))
    speed = settings.samples_per_second
    corpora = [report_corpus(findings, settings, spec, encoder, speed) for findings in found]
    pairs = [compare(one, other) for other, one in combinations(found, 2)]
    shared = [pair for pair in pairs if pair["count"]]
    warnings = [warning for corpus in corpora for warning in warnings_of(corpus)]
    return {"corpora": corpora, "shared_audio": shared, "warnings": [*map(shared_warning, shared), *warnings]}


def scan(
    manifest: str, settings: Settings, spec: FeatureSpec, encoder: TranscriptEncoder, processes: int
) -> tuple[Recordings | None, Path]:
    """Scans a manifest as a run does.

    Returns:
        Its usable recordings, None where there is not a single one; and the file that lists the rejected rows.
    """
    name = hashlib.blake2b(manifest.encode(), digest_size=6).hexdigest()
    rejected_file = Path(settings.data.cache_dir) / "check" / f"{name}-rejected.jsonl"
    everything = dataclasses.replace(settings.data, max_rejected_fraction=1.0)
    try:
        recordings = load_recordings(manifest, everything, spec, encoder, report=rejected_file, processes=processes)
    except TooManyRejectedError:  # all of them
        return None, rejected_file
    return recordings, rejected_file


def compare(one: Findings, other: Findings) -> dict[str, Any]:
    """The audio of a corpus that another has as well."""
    shared = find_shared(one.survey.rows, other.survey.rows)
    examples = [{"in": one.example(here), "also_in": other.example(there)} for there, here in shared.examples]
    leak = one.role != other.role
    return {"in": one.name, "also_in": other.name, "leak": leak, "count": shared.count, "examples": examples}


if __name__ == "__main__":
    command_line.run(main)
