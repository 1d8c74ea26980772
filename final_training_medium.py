"""Trains Whisper on the samples that prepro_add2radis.py puts into Redis.

    python final_training_medium.py --model.language Bengali --model.output_dir out

Either script may be started first. Stopped by Ctrl-C, SIGTERM or a crash, and started again with the same flags, it
goes on from its newest complete checkpoint. Several GPUs: torchrun --nproc-per-node=gpu final_training_medium.py ...
"""

from __future__ import annotations

from common import command_line
from config import Config
from training.model import load_model
from training_manager import TrainingRun


def main() -> None:
    """The right half of the flow chart: pop a batch, train on it, again and again until the plan is done."""
    config = command_line.parse(Config, "Trains Whisper on the samples that prepro_add2radis.py puts into Redis.")
    command_line.log_settings(config.to_dict())

    run = TrainingRun(config)
    model, processor = load_model(config.model)
    plan = run.wait_for_plan()  # the producer makes it
    trainer = run.make_trainer(plan, model, processor)  # refuses what does not fit together

    run.attach(trainer)  # the queue serves us from the checkpoint's position on
    run.train(trainer)  # its collator pops each batch, and waits while the queue has less than one

    run.save(trainer)  # before the evaluation, which may fail or be stopped
    metrics = run.evaluate(trainer)
    run.finish(trainer)
    print(run.report(trainer, metrics))


if __name__ == "__main__":
    command_line.run(main)
