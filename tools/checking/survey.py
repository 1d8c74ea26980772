"""Looks at all usable recordings of a corpus, in parallel, and adds up what is found."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from common.process_executor import ProcessExecutor
from common.progress_bar import progress_bar
from config import DataConfig
from corpus.recordings import Recordings
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder
from tools.checking.surveyor import start_worker, survey_range
from tools.checking.tallies import ROW, Survey

RECORDINGS_PER_TASK = 256
DECODED_SAMPLE = 400
"""Recordings that are decoded, spread over the corpus, where not all are."""


def start_surveyors(
    data: DataConfig, spec: FeatureSpec, encoder: TranscriptEncoder, *, processes: int, deep: bool
) -> ProcessExecutor:
    """Processes that survey corpora.

    Args:
        data: how recordings are read, and the number format of features.
        spec: the model's feature settings.
        encoder: counts label tokens.
        processes: how many.
        deep: whether every recording is decoded, and audio at URLs fetched; else `DECODED_SAMPLE` are.
    """
    return ProcessExecutor(processes, start_worker, (data, spec, encoder, deep))


def survey_recordings(recordings: Recordings, surveyors: ProcessExecutor, processes: int) -> Survey:
    """Looks at all usable recordings of a corpus.

    Args:
        recordings: what the scan takes.
        surveyors: what `start_surveyors` gave.
        processes: how many these are.

    Raises:
        SourceError: a store of recordings can't be reached.
    """
    total = len(recordings)
    chosen = np.random.default_rng(0).permutation(total)[:DECODED_SAMPLE].tolist()
    survey = Survey(np.zeros(total, ROW))
    tasks = (
        (recordings, start, min(start + RECORDINGS_PER_TASK, total),
         frozenset(index for index in chosen if start <= index < start + RECORDINGS_PER_TASK))
        for start in range(0, total, RECORDINGS_PER_TASK)
    )  # fmt: skip
    done = 0
    with progress_bar(total, "recording", "look") as progress:
        for part in _in_turn(surveyors, tasks, at_once=2 * processes):
            survey.merge(part, survey.rows[done : done + len(part.rows)])
            done += len(part.rows)
            progress.update(len(part.rows))
    return survey


def _in_turn(surveyors: Executor, tasks: Iterator[tuple[Any, ...]], at_once: int) -> Iterator[Survey]:
    """Results of the tasks, in order."""
    pending: deque[Future[Survey]] = deque()
    for task in tasks:
        pending.append(surveyors.submit(survey_range, *task))
        if len(pending) >= at_once:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
