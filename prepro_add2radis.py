"""The producer: augments recordings and pushes their log-mels to Redis, and waits while Redis is at its memory limit.

    python prepro_add2radis.py --data.train_manifest train.csv --model.model_name openai/whisper-medium

Start it before or after the trainer (final_training_medium.py), with the same settings. Stop it whenever you like:
started again, it goes on where the queue stands. It ends when all is pushed and no trainer may need any of it again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from common.command_line import log_settings, parse, run
from config import Config
from corpus.formats import find_manifest
from corpus.rejected_report import LateRejections, check_rejected
from corpus.scan import load_recordings
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from producing.producer_report import Progress, Tally
from producing.recipe import Recipe, make_recipe
from producing.worker_pool import WorkerPool, check_executor
from sample_queue.errors import RunFinished
from sample_queue.protocol import PlanCard
from sample_queue.writer import SampleWriter, announce_producer

logger = logging.getLogger(__name__)


def main() -> None:
    """Local storage → plan → worker pool → virtual container, until every sample is pushed."""
    config = parse(Config, __doc__ or "")
    log_settings(config.to_dict())
    config.save(Path(config.model.output_dir) / "producer_config.json")
    recipe = plan_stream(config)
    writer = SampleWriter(config.redis, make_card(recipe))
    try:
        push_samples(recipe, writer)
    except RunFinished:
        logger.info("the trainer is done")
    finally:
        writer.close()


def plan_stream(config: Config) -> Recipe:
    """Reads and scans the manifest, and plans the stream. A trainer that waits for the plan hears that it is coming."""
    # A wrong path is told before a server is started or a model fetched.
    find_manifest(config.data.train_manifest, config.data.format)
    check_executor(config)
    spec = load_feature_spec(config.model.model_name)
    spec.check_sample_rate(config.audio_augmentation.sample_rate)
    encoder = load_transcript_encoder(config.model)
    announcement = announce_producer(config.redis)
    try:
        found = load_recordings(
            config.data.train_manifest, config.data, spec, encoder,
            report=report_path(config), processes=workers(config), heartbeat=announcement.heartbeat,
        )  # fmt: skip
        return make_recipe(config, found, spec, encoder)
    finally:
        announcement.close()


def push_samples(recipe: Recipe, writer: SampleWriter) -> None:
    """Pushes the stream from where the queue stands, waiting while there is no room, and prints the closing report."""
    config, planned, tally = recipe.config, len(recipe.plan), Tally()
    late = LateRejections(report_path(config), recipe.fingerprint)
    position = writer.open()
    try:
        with (
            WorkerPool(recipe, workers(config)) as pool,
            Progress(planned, position, writer.status) as progress,
        ):
            writer.on_wait = lambda: progress.show(position, waiting=writer.waiting)
            while position < planned or (position := writer.linger(position)) < planned:
                chunk = pool.chunk_at(position, writer.heartbeat)
                late.add(chunk.rejected)
                check_late_rejections(recipe, late)
                position = writer.push(position, chunk.payloads, chunk.rejected)
                tally.add(chunk)
                progress.show(position)
    finally:
        rejected = recipe.recordings.rejected + late.rows
        print(tally.report(position, planned, writer.waited_s, rejected, report_path(config)), flush=True)


def check_late_rejections(recipe: Recipe, late: LateRejections) -> None:
    """Stops the run when more recordings fail, at the scan and while decoding, than the configuration allows."""
    data, found = recipe.config.data, recipe.recordings
    rejected, rows = found.rejected + late.rows, found.rejected + len(found)
    check_rejected(rejected, rows, data.max_rejected_fraction, data.train_manifest, report_path(recipe.config))


def make_card(recipe: Recipe) -> PlanCard:
    """What a trainer must know of the plan."""
    spec, data = recipe.spec, recipe.config.data
    feature_bytes = spec.num_mel_bins * spec.window_frames * (2 if data.feature_dtype == "float16" else 4)
    return PlanCard(
        fingerprint=recipe.fingerprint,
        planned=len(recipe.plan),
        samples_per_epoch=recipe.plan.samples_per_epoch,
        num_mel_bins=spec.num_mel_bins,
        window_frames=spec.window_frames,
        feature_dtype=data.feature_dtype,
        tokenizer=recipe.encoder.digest,
        max_sample_bytes=feature_bytes + 4 * recipe.encoder.max_tokens + HEADER_BYTES,
    )


HEADER_BYTES = 2048
"""Room for a sample's header: its id is of the user's making."""


def workers(config: Config) -> int:
    """Worker processes: as configured, or one per core that this process may use."""
    if config.data.num_workers:
        return config.data.num_workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS lacks it


def report_path(config: Config) -> Path:
    """The rejected report."""
    return Path(config.model.output_dir) / "rejected.jsonl"


if __name__ == "__main__":
    run(main)
