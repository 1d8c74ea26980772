"""Exports a trained model to other Whisper runtimes, and checks there that it writes what Hugging Face's writes.

    python -m tools.export --model out --to ct2 --output out-ct2 --quantization int8

ct2: CTranslate2, for faster-whisper. ggml: whisper.cpp. openai: a .pt for openai-whisper. They need
`pip install --no-deps -r requirements-export.txt`.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from common import command_line
from common.errors import UserError, one_line
from tools.export_runtimes import EXPORTERS, Exporter
from tools.greedy_check import GreedyReference, make_reference
from training.saved_folder import complete_saved_folder

logger = logging.getLogger(__name__)

DIGITS = Path(__file__).parent.parent / "examples" / "digits" / "eval"
WINDOW_S = 30
"""The window that all these runtimes take for granted, in seconds."""
OPENAI_VOCABULARIES = (51864, 51865, 51866)
"""Sizes that openai-whisper and whisper.cpp know: English-only, multilingual, large-v3."""
NO_ONNX = (
    "--to onnx needs optimum-onnx, and its newest version (0.1.0) refuses transformers above 4.57. Make an environment "
    "of its own for it (pip install optimum-onnx==0.1.0), then: optimum-cli export onnx --model MODEL OUTPUT; the "
    "folders that this trainer saves are readable there"
)


@dataclass
class Settings:
    """What the command line sets."""

    model: str
    """Folder of the model, a checkpoint folder, or a name on the Hugging Face Hub."""
    to: Literal["ct2", "ggml", "onnx", "openai"]
    """Runtime to export to."""
    output: Path
    """Folder to write to. It must not exist yet, and appears when the check has passed."""
    quantization: Literal["float32", "float16", "int8"] = "float32"
    """How weights are stored; int8 with ct2 only."""
    samples: list[str] = field(default_factory=list)
    """Audio files to compare on; of longer ones the first 30 s. Empty: the first of the digits in examples/."""
    allow_different: int = 0
    """How many of the samples may come out differently, as a lower precision may have it."""


def main() -> None:
    settings = command_line.parse(Settings, "Exports a model to another Whisper runtime and checks it there.")
    for name in ("transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    set_verbosity_error()
    disable_progress_bar()
    exporter = find_exporter(settings)
    model, processor = load(settings.model)
    reference = make_reference(model, processor, settings.samples or default_samples())

    unfinished = settings.output.with_name(f".{settings.output.name}.{secrets.token_hex(4)}.unfinished")
    try:
        logger.info("converting %s", settings.model)
        write(exporter, model, processor, unfinished, settings.quantization)
        logger.info("decoding %d samples with what was written", len(reference.features))
        check(exporter, reference, unfinished, settings)
        unfinished.rename(settings.output)
    except OSError as error:
        raise UserError(
            f"cannot write {settings.output}: {error.strerror or error}; choose another --output"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{settings.output}: done. {exporter.usage.format(output=settings.output)}")


def find_exporter(settings: Settings) -> Exporter:
    """The exporter that is asked for.

    Raises:
        UserError: it can't work here.
    """
    if settings.to == "onnx":
        raise UserError(NO_ONNX)
    if settings.output.exists():
        raise UserError(f"--output {settings.output} exists: remove it, or choose another")
    exporter = EXPORTERS[settings.to]
    if settings.quantization not in exporter.quantizations:
        raise UserError(
            f"--quantization {settings.quantization} is not there for --to {settings.to}: expected "
            + " or ".join(exporter.quantizations)
        )
    return exporter


def load(name: str) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Loads a model that the other runtimes can hold.

    Raises:
        UserError: there is none of that name, or its window is not theirs.
    """
    try:
        model = WhisperForConditionalGeneration.from_pretrained(name).float().eval()
        processor = WhisperProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load --model {name!r} as a Whisper model: {one_line(error)}") from error
    window_s = processor.feature_extractor.chunk_length
    if window_s != WINDOW_S or model.config.max_source_positions != 50 * WINDOW_S:
        raise UserError(
            f"{name} has a window of {window_s} s: faster-whisper, whisper.cpp and openai-whisper take {WINDOW_S} s "
            "for granted. Use it with transformers or tools.transcribe"
        )
    return model, processor


def write(
    exporter: Exporter,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    output: Path,
    quantization: str,
) -> None:
    """Writes the export to a new folder, from a plain folder that has all files converters ask for."""
    plain = output.with_name(f"{output.name}.plain")
    try:
        model.save_pretrained(plain)
        processor.save_pretrained(plain)
        complete_saved_folder(plain, processor)
        output.mkdir(parents=True)
        exporter.write(model, plain, output, quantization)
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install --no-deps -r requirements-export.txt") from error
    finally:
        shutil.rmtree(plain, ignore_errors=True)


def check(exporter: Exporter, reference: GreedyReference, output: Path, settings: Settings) -> None:
    """Compares what the export writes with what Hugging Face's `generate` writes.

    Raises:
        UserError: too many samples differ.
    """
    if exporter.needs_openai_vocabulary and reference.model.config.vocab_size not in OPENAI_VOCABULARIES:
        logger.warning(
            "%s has a vocabulary of %d tokens, none of OpenAI's: the weights are right, but %s spells with its own",
            settings.model, reference.model.config.vocab_size, exporter.runtime,
        )  # fmt: skip
    try:
        written = exporter.decode(reference, output)
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install --no-deps -r requirements-export.txt") from error
    different = reference.differences(written)
    for sample, ours, theirs in different:
        logger.warning("%s: Hugging Face writes %r, the export %r", sample, ours, theirs)
    if len(different) > settings.allow_different:
        raise UserError(
            f"{len(different)} of {len(written)} samples come out differently in the export, which was not kept: try "
            f"another --quantization than {settings.quantization}, or --allow_different {len(different)}"
        )
    logger.info("%d of %d samples come out equal", len(written) - len(different), len(written))


def default_samples() -> list[str]:
    """The first three recordings of the digits."""
    return [str(path) for path in sorted(DIGITS.glob("*.ogg"))[:3]]


if __name__ == "__main__":
    command_line.run(main)
