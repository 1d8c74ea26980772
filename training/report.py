"""The closing report of the training script."""

from __future__ import annotations

import shlex
from pathlib import Path

from config import Config
from sample_queue.embedded_server import embedded_pid, may_embed
from training.metrics import RATES, TranscriptionMetrics
from training.stream_trainer import StreamTrainer

RATE_NAMES = {"wer": "WER", "cer": "CER", "wer_normalized": "WER normalised", "cer_normalized": "CER normalised"}


def make_report(config: Config, trainer: StreamTrainer, metrics: dict[str, float]) -> str:
    """The closing report.

    Args:
        config: the run's settings.
        trainer: after training.
        metrics: the evaluation of the final model; empty without one.
    """
    progress, state = trainer.progress, trainer.state
    best = ", the best of the run" if trainer.model_step != state.global_step else ""
    hours = progress.trained_s / 3600
    folder = Path(config.model.output_dir).expanduser().resolve()
    lines = [
        "",
        f"Training is done: {state.global_step} steps, {trainer.position} samples, {hours:.2f} h of audio",
        f"Time: {_duration(trainer.training_s)}, of which {_duration(progress.waited_s)} waiting for samples",
        *_rate_lines(trainer, metrics),
        *_example_lines(trainer),
        f"Model: {folder} (step {trainer.model_step}{best})",
        "Transcribe a file with it:",
        f"  {transcription_command(folder)}",
    ]
    if may_embed(config.redis) and embedded_pid(config.redis):
        lines.append(f"Redis still runs; stop it: python redis_manager.py stop --redis.port {config.redis.port}")
    return "\n".join(lines)


def transcription_command(folder: Path, recording: str = "FILE.ogg") -> str:
    """A shell command that transcribes a recording with the model in a folder."""
    code = (
        "import librosa, transformers; "
        f"asr = transformers.pipeline('automatic-speech-recognition', {str(folder)!r}); "
        f"print(asr(librosa.load({recording!r}, sr=16000)[0])['text'])"
    )
    return f"python -c {_quoted(code)}"


def _quoted(code: str) -> str:
    """Code as one word of a POSIX shell: in double quotes where nothing in them would be special to the shell."""
    return shlex.quote(code) if set(code) & set('$`"\\!\n') else f'"{code}"'


def _rate_lines(trainer: StreamTrainer, metrics: dict[str, float]) -> list[str]:
    history = trainer.state.log_history
    before = next((entry for entry in history if entry["step"] == 0 and "eval_loss" in entry), {})
    lines = []
    for rate in RATES:
        key = f"eval_{rate}"
        if key in metrics:
            was = f"{before[key]:.4f} → " if key in before else ""
            lines.append(f"{RATE_NAMES[rate]}: {was}{metrics[key]:.4f}")
    return lines


def _example_lines(trainer: StreamTrainer) -> list[str]:
    if not isinstance(trainer.compute_metrics, TranscriptionMetrics) or not trainer.compute_metrics.examples:
        return []
    pairs = [f"  {reference} → {hypothesis}" for reference, hypothesis in trainer.compute_metrics.examples]
    return ["Reference → hypothesis:", *pairs]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
