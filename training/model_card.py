"""The model card: what a finished model was trained on, how, how well it does, and how to use it.

It is the `README.md` of the output folder, in the form that the Hugging Face Hub reads, and needs no network.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from common.files import written_whole
from config import Config
from training.metrics import RATES
from training.report import RATE_NAMES
from training.stream_trainer import StreamTrainer

CARD_FILE = "README.md"
PRODUCER_SETTINGS = "producer_config.json"
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "audiomentations")
_RATE = re.compile(rf"eval_(?:(?P<set>.+)_)?(?P<rate>{'|'.join(sorted(RATES, key=len, reverse=True))})")


def write_model_card(folder: Path, config: Config, trainer: StreamTrainer) -> None:
    """Writes the card of a finished model.

    Args:
        folder: with the model.
        config: the run's settings.
        trainer: after training.

    Raises:
        OSError: the folder can't be written.
    """
    with written_whole(folder / CARD_FILE) as file:
        file.write(str(make_model_card(folder, config, trainer)).encode())


def make_model_card(folder: Path, config: Config, trainer: StreamTrainer) -> ModelCard:
    """The card of a finished model; its metadata follow the Hub's rules, error rates in percent."""
    rates = _rates(trainer)
    data = ModelCardData(
        language=_language_code(config.model.language) or None,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        tags=["whisper", "automatic-speech-recognition", "dynamic-augmentation"],
        base_model=_base_model(config.model.model_name),
        metrics=["wer", "cer"] if rates else None,
        model_name=folder.resolve().name,
        eval_results=_eval_results(config, rates) or None,
    )
    sections = {
        f"# {folder.resolve().name}": _opening(config),
        "## How to use": _usage(folder.resolve().name),
        "## Results": _results_table(rates),
        "## Training data": _data_lines(config, trainer),
        "## Augmentation": _augmentation_lines(folder, config),
        "## Hyper-parameters": _hyper_parameters(config, trainer),
        "## Limits": _limits(config, trainer),
        "## Versions": _lines({package: importlib.metadata.version(package) for package in PACKAGES}),
    }
    text = "\n\n".join(f"{title}\n\n{content}" for title, content in sections.items())
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _rates(trainer: StreamTrainer) -> dict[str, dict[str, float]]:
    """Error rates of the final model by evaluation set ("" where there is one without a name)."""
    step, found = trainer.model_step, dict[str, dict[str, float]]()
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if entry["step"] == step and (match := _RATE.fullmatch(name)):
                found.setdefault(match["set"] or "", {})[match["rate"]] = float(value)
    return found


def _eval_results(config: Config, rates: Mapping[str, Mapping[str, float]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="automatic-speech-recognition",
            dataset_type=_set_name(config, name),
            dataset_name=_set_name(config, name),
            dataset_split="evaluation",
            metric_type=rate.partition("_")[0],
            metric_name=RATE_NAMES[rate],
            metric_value=round(100 * value, 2),
        )
        for name, of_set in rates.items()
        for rate, value in of_set.items()
    ]


def _set_name(config: Config, name: str) -> str:
    """What an evaluation set is called: its own name, or that of its manifest without the folders of this machine."""
    return name or _short(config.data.eval_manifest)


def _short(manifest: object) -> str:
    """A manifest's name: of a path the last two parts, so that no home folder is published; of a URL no secrets."""
    text = str(manifest).partition("?")[0]
    if text.startswith("hf://"):
        return text.removeprefix("hf://")
    return "/".join(Path(text.rpartition("@")[2]).parts[-2:]).strip("/")


def _opening(config: Config) -> str:
    model = config.model
    language = f" in {model.language}" if model.language else ""
    return (
        f"A fine-tuned Whisper ({_base_model(model.model_name) or 'from a checkpoint without a name'}) that does the "
        f"task *{model.task}*{language}."
    )


def _usage(name: str) -> str:
    return f"""```python
import transformers

asr = transformers.pipeline("automatic-speech-recognition", model="{name}")
print(asr("FILE.flac")["text"])
```

Longer files, subtitles: `python -m tools.transcribe FILE --model {name} --format srt` of the project that trained it.
`chunk_length_s` of the pipeline joins its chunks without a space; transcribe long files as above."""


def _results_table(rates: Mapping[str, Mapping[str, float]]) -> str:
    if not rates:
        return "The run had no evaluation with transcripts."
    rows = [
        f"| {name or 'evaluation'} | " + " | ".join(f"{100 * of_set[rate]:.2f}" for rate in RATES) + " |"
        for name, of_set in rates.items()
        if set(RATES) <= of_set.keys()
    ]
    head = f"| set | {' | '.join(RATE_NAMES[rate] for rate in RATES)} |\n|---|{'---|' * len(RATES)}"
    note = "In percent, over all words (characters) of a set. Normalised: lower case, without punctuation and symbols."
    return "\n".join([head, *rows, "", note])


def _data_lines(config: Config, trainer: StreamTrainer) -> str:
    data = config.data
    return _lines(
        {
            "training corpus": _short(data.train_manifest),
            "evaluation corpus": _short(data.eval_manifest) if data.eval_manifest else "none",
            "audio trained, repetitions and augmented copies counted": f"{trainer.progress.trained_s / 3600:.2f} h",
            "samples trained": trainer.position,
            "epochs planned": data.epochs,
            "originals of a recording in an epoch": int(data.include_original),
            "augmented copies of it": data.augmented_copies,
        }
    )


def _augmentation_lines(folder: Path, config: Config) -> str:
    """The producer's settings of augmentation, where it has left them in the folder; else the trainer's."""
    settings = config.to_dict()["audio_augmentation"]
    with suppress(OSError, ValueError, KeyError):  # the producer may have run on another machine
        settings = json.loads((folder / PRODUCER_SETTINGS).read_text(encoding="utf-8"))["audio_augmentation"]
    settings["bg_noise_file_list"] = [_short(name) for name in settings.get("bg_noise_file_list", [])]
    return _lines(settings)


def _hyper_parameters(config: Config, trainer: StreamTrainer) -> str:
    arguments, names = trainer.args, (
        "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "per_device_train_batch_size",
        "gradient_accumulation_steps", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "seed",
    )  # fmt: skip
    chosen = {name: getattr(arguments, name) for name in names}
    chosen["lr_scheduler_type"] = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    return _lines(
        {
            "steps": trainer.state.global_step,
            "step of this model": trainer.model_step,
            "devices": arguments.world_size,
            "optimizer": optimizer,
            "dropout": config.model.dropout,
            "encoder frozen": config.model.freeze_feature_encoder,
            **chosen,
        }
    )


def _limits(config: Config, trainer: StreamTrainer) -> str:
    window_s = getattr(trainer.processing_class, "feature_extractor").chunk_length  # noqa: B009
    return (
        f"- One window holds {window_s} s of audio. Recordings of the training were at most "
        f"{min(window_s, config.data.max_duration_s):g} s long.\n"
        "- Like every Whisper it may write what nobody said, above all in silence, music and noise.\n"
        "- Error rates hold for speech like that of the evaluation sets; other accents, rooms and topics differ.\n"
        "- Trained on transcripts without timestamps it may lose the times that the base model knew."
    )


def _base_model(name: str) -> str | None:
    """A Hub name; nothing for a folder, whose name says nothing to others."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).expanduser().exists() else None


def _language_code(language: str) -> str:
    name = language.lower()
    return name if name in LANGUAGES else TO_LANGUAGE_CODE.get(name, "")


def _lines(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())
