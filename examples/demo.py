"""The demo: trains a tiny Whisper from random weights on spoken digits, with both real scripts as two processes.

    python examples/demo.py

The producer augments 800 recordings with all eight augmentations and pushes them to a private Redis; the trainer pops
its batches from there. At the end stand the word error rates before and after, what the model wrote, where it lies and
how to transcribe a file with it. Takes a few minutes on two cores and leaves no process behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = Path("examples")
DIGITS = EXAMPLES / "digits"
OUTPUT = Path("out") / "demo"

RECIPE = {
    "redis.max_memory_gb": "0.1",
    "redis.namespace": "demo",
    "data.train_manifest": str(DIGITS / "train"),
    "data.eval_manifest": str(DIGITS / "eval"),
    "data.epochs": "9",
    "data.num_workers": "1",
    "audio_augmentation.bg_noise_file_list": str(EXAMPLES / "noise"),
    "model.model_name": str(OUTPUT / "checkpoint"),
    "model.output_dir": str(OUTPUT / "model"),
    "model.language": "English",
    "model.dropout": "0.1",
    "model.per_device_train_batch_size": "16",
    "model.per_device_eval_batch_size": "40",
    "model.learning_rate": "1e-3",
    "model.lr_scheduler_type": "cosine",
    "model.warmup_steps": "0.1",
    "model.eval_steps": "300",
    "model.save_steps": "300",
    "model.logging_steps": "50",
    "model.generation_max_length": "32",
}
TRAINER_ONLY = ["--model.trainer_arguments", "eval_on_start", "True"]
"""The word error rate before training."""


def main() -> int:
    """Runs the demo; returns the exit code of the first script that failed, or 0."""
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    shutil.rmtree(OUTPUT, ignore_errors=True)  # or the trainer would find an earlier demo finished
    make = [sys.executable, str(EXAMPLES / "make_tiny_checkpoint.py"), "--manifest", str(DIGITS / "train")]
    subprocess.run([*make, "--chunk_length", "3", "--output", str(OUTPUT / "checkpoint")], check=True)

    port = f"--redis.port={free_port()}"
    flags = [port, *(f"--{name}={value}" for name, value in RECIPE.items())]
    scripts: list[Script] = []
    try:
        scripts.append(Script("producer", "prepro_add2radis.py", flags))
        scripts.append(Script("trainer", "final_training_medium.py", [*flags, *TRAINER_ONLY]))
        reports = [script.finish() for script in reversed(scripts)]
    finally:
        for script in scripts:
            script.end()
        subprocess.run([sys.executable, "redis_manager.py", "stop", port], stdout=subprocess.DEVNULL, check=False)
    failed = next((script.process.returncode for script in scripts if script.process.returncode), 0)
    if not failed:
        report = "\n\n".join(reversed(reports))
        python = os.path.relpath(sys.executable)  # the user's own may lack what the model needs
        print(report.replace("  python -c", f"  {python} -c").replace("FILE.ogg", str(DIGITS / "eval" / "0000.ogg")))
    return failed


class Script:
    """One of the two scripts, running. Its log appears here line by line, behind its name; its report comes last."""

    def __init__(self, name: str, file: str, flags: list[str]) -> None:
        print(f"$ python {file} {' '.join(flags)}\n", flush=True)
        self._name = name
        self.process = subprocess.Popen(
            [sys.executable, file, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # One thread: the other core is the producer's, and sums in another order would give another result.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self._relay = threading.Thread(target=self._print_log, daemon=True)
        self._relay.start()

    def finish(self) -> str:
        """Waits until the script has ended. Returns its closing report."""
        assert self.process.stdout is not None
        report = [line.rstrip() for line in self.process.stdout]
        self.process.wait()
        self._relay.join()
        return "\n".join(line for line in report if not line.startswith("Redis still runs")).strip()

    def end(self) -> None:
        """Ends the script if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()

    def _print_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.strip():
                print(f"{self._name:>8} | {line.rstrip()}", flush=True)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the demo on SIGTERM; a second one must not interrupt the tidying up."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
