"""The producer: augments recordings and pushes their log-mels to Redis, and waits while Redis is at its memory limit.

    python prepro_add2radis.py --data.train_manifest train.csv --model.model_name openai/whisper-medium

Start it before or after the trainer (final_training_medium.py), with the same settings. Stop it whenever you like:
started again, it goes on where the queue stands. It ends when all is pushed and no trainer may need any of it again.
"""

from __future__ import annotations

import logging
from pathlib import Path

import audioaugmentations
from common.command_line import log_settings, parse, run
from config import Config
from corpus.formats import find_manifest
from corpus.scan import load_recordings
from features.feature_spec import load_feature_spec
from features.labels import load_transcript_encoder
from producing.plan_card import make_card
from producing.producer_report import ProgressLine, Tally
from producing.recipe import StreamRecipe, make_recipe
from producing.rejections import RejectionLimit, report_path
from producing.worker_pool import WorkerPool, check_executor, worker_count
from sample_queue.errors import RunFinished
from sample_queue.writer import SampleWriter, announce_producer

logger = logging.getLogger(__name__)


def main() -> None:
    """Local storage → plan → worker pool → virtual container, until every sample is pushed."""
    config = read_settings()
    recipe = plan_stream(config)
    writer = SampleWriter(config.redis, make_card(recipe))
    try:
        push_samples(recipe, writer)
    except RunFinished:
        logger.info("the trainer is done")
    finally:
        writer.close()


def read_settings() -> Config:
    """The settings of config.py and the command line; logged, and saved in the output folder."""
    config = parse(Config, __doc__ or "")
    log_settings(config.to_dict())
    config.save(Path(config.model.output_dir) / "producer_config.json")
    return config


def plan_stream(config: Config) -> StreamRecipe:
    """Reads and scans the manifest, and plans the stream. A trainer that waits for the plan hears that it is coming."""
    # Mistakes are told before a server is started or a model fetched.
    find_manifest(config.data.train_manifest, config.data.format)
    audioaugmentations.check(config.audio_augmentation)
    check_executor(config)
    spec = load_feature_spec(config.model.model_name)
    spec.check_sample_rate(config.audio_augmentation.sample_rate)
    encoder = load_transcript_encoder(config.model)
    announcement = announce_producer(config.redis)
    try:
        found = load_recordings(
            config.data.train_manifest, config.data, spec, encoder,
            report=report_path(config), processes=worker_count(config), heartbeat=announcement.heartbeat,
        )  # fmt: skip
        return make_recipe(config, found, spec, encoder)
    finally:
        announcement.close()


def push_samples(recipe: StreamRecipe, writer: SampleWriter) -> None:
    """Pushes the stream from where the queue stands, waiting while there is no room, and prints the closing report."""
    config, planned, tally, limit = recipe.config, len(recipe.plan), Tally(), RejectionLimit(recipe)
    position = writer.open()
    try:
        with (
            WorkerPool(recipe, worker_count(config)) as pool,
            ProgressLine(planned, position, writer.status) as progress,
        ):
            writer.on_wait = lambda: progress.show(position, waiting=writer.waiting)
            while position < planned or (position := writer.wait_at_end(position)) < planned:
                chunk = pool.chunk_at(position, writer.heartbeat)
                limit.add(chunk.rejected)
                position = writer.push(position, chunk.payloads, chunk.rejected)
                tally.add(chunk)
                progress.show(position)
    finally:
        print(tally.report(position, planned, writer.waited_s, limit.rejected, report_path(config)), flush=True)


if __name__ == "__main__":
    run(main)
