"""The demo: trains a tiny Whisper from random weights on spoken digits, with both real scripts as two processes.

    python examples/demo.py

The producer augments 720 recordings with all eight augmentations and pushes them to a private Redis; the trainer pops
its batches from there. At the end stand the word error rates before and after, what the model wrote, where it lies and
how to transcribe a file with it. Takes a few minutes on two cores and leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
OUTPUT = Path("out") / "demo"

RECIPE = {
    "redis.max_memory_gb": "0.1",
    "redis.namespace": "demo",
    "data.train_manifest": str(EXAMPLES / "digits" / "train"),
    "data.eval_manifest": str(EXAMPLES / "digits" / "eval"),
    "data.epochs": "12",
    "data.num_workers": "1",
    "audio_augmentation.bg_noise_file_list": str(EXAMPLES / "noise"),
    "audio_augmentation.far_field_rooms": "4",
    "model.model_name": str(OUTPUT / "checkpoint"),
    "model.output_dir": str(OUTPUT / "model"),
    "model.language": "English",
    "model.per_device_train_batch_size": "16",
    "model.per_device_eval_batch_size": "40",
    "model.learning_rate": "1e-3",
    "model.lr_scheduler_type": "cosine",
    "model.warmup_steps": "0.1",
    "model.eval_steps": "300",
    "model.save_steps": "300",
    "model.logging_steps": "50",
    "model.generation_max_length": "24",
}


def main() -> int:
    """Runs the demo; returns the exit code of the first script that failed, or 0."""
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    flags = [f"--redis.port={free_port()}", *(f"--{name}={value}" for name, value in RECIPE.items())]
    manifest = str(EXAMPLES / "digits" / "train" / "metadata.csv")
    checkpoint = [str(EXAMPLES / "make_tiny_checkpoint.py"), "--manifest", manifest]
    processes: list[subprocess.Popen[str]] = []
    subprocess.run([sys.executable, *checkpoint, "--output", str(OUTPUT / "checkpoint")], check=True)
    try:
        producer = start("producer", "prepro_add2radis.py", flags)
        processes.append(producer)
        trainer = start(
            "trainer", "final_training_medium.py", [*flags, "--model.trainer_arguments", "eval_on_start", "True"]
        )
        processes.append(trainer)
        return trainer.wait() or producer.wait()
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.wait()
        stop = [sys.executable, "redis_manager.py", "stop", flags[0]]
        subprocess.run(stop, stdout=subprocess.DEVNULL, check=False)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the demo on SIGTERM; a second one must not interrupt the tidying up."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def start(name: str, script: str, flags: list[str]) -> subprocess.Popen[str]:
    """Starts a script whose output appears here line by line, behind its name."""
    print(f"$ python {script} {' '.join(flags)}\n", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-u", script, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # One thread: the other core is the producer's, and sums in another order would give another result.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    threading.Thread(target=relay, args=(name, process.stdout), daemon=True).start()
    return process


def relay(name: str, lines: IO[str]) -> None:
    """Prints lines behind a name."""
    for line in lines:
        print(f"{name:>8} | {line.rstrip()}", flush=True)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
