"""Makes a small Whisper checkpoint with random weights, to train from scratch on spoken digits or to test with.

    python examples/make_tiny_checkpoint.py --manifest examples/digits/train/metadata.csv --output out/tiny

The folder is complete: config, weights, tokenizer, preprocessor and generation config. It loads like any Whisper, and
both scripts take it as `--model.model_name out/tiny`. The tokenizer is a byte-level BPE trained on the manifest's
transcripts, so that it spells any language, followed by all of Whisper's special tokens in Whisper's order. The same
arguments give the same bytes.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: the project's modules are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

from common import command_line
from common.errors import UserError

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "transcription", "sentence")
METADATA_FILES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")

POSITIONS_PER_SECOND = 50
"""Encoder positions per second of audio: frames of 10 ms, halved by the second convolution."""
MAX_LABEL_TOKENS = 448
"""Label tokens that a Whisper takes (`max_target_positions`)."""
LAST_TIMESTAMP_S = 30
TIMESTAMPS_PER_SECOND = 50
INIT_STD = 0.08
"""Standard deviation of the random weights, about 1/sqrt(d_model). Whisper's 0.02 suits widths of 1000 and more; a
model as narrow as this one then took 720 steps to the word error rate that it reaches in 270 with 0.08 (measured)."""
MAX_BPE_TOKENS = 768
"""Upper limit on the tokenizer's text tokens: 256 bytes and what the transcripts let it merge."""

END = "<|endoftext|>"
START = "<|startoftranscript|>"
NO_SPEECH = "<|nospeech|>"
NO_TIMESTAMPS = "<|notimestamps|>"


@dataclass
class Settings:
    """What the command line sets."""

    manifest: Path
    """Manifest whose transcripts train the tokenizer: CSV, TSV or JSONL with a column text (or transcription,
    sentence), or a folder with a metadata.csv (or .tsv, .jsonl)."""
    output: Path
    """Folder for the checkpoint. It is made if it does not exist; files of an earlier checkpoint are overwritten."""
    chunk_length: int = 4
    """The model's window in seconds, 1 to 30. Whisper's own is 30."""
    num_mel_bins: int = 80
    """Mel bins of the features, 8 to 256. Whisper's own are 80, or 128 in large-v3."""
    seed: int = 0
    """Seed of the random weights."""


def make_tiny_checkpoint(
    manifest: str | Path, output: str | Path, chunk_length: int = 4, num_mel_bins: int = 80, seed: int = 0
) -> Path:
    """Writes a complete Whisper checkpoint of about 1 M random weights.

    Args:
        manifest: the file or folder whose transcripts train the tokenizer.
        output: folder for the checkpoint.
        chunk_length: the model's window in seconds, 1 to 30.
        num_mel_bins: mel bins of the features, 8 to 256.
        seed: seed of the weights.

    Returns:
        `output`.

    Raises:
        UserError: an argument out of range, no manifest, no transcripts in it, or `output` cannot be written.
    """
    if not 1 <= chunk_length <= LAST_TIMESTAMP_S:
        raise UserError(f"--chunk_length is {chunk_length}: expected seconds from 1 to {LAST_TIMESTAMP_S}")
    if not 8 <= num_mel_bins <= 256:
        raise UserError(f"--num_mel_bins is {num_mel_bins}: expected mel bins from 8 to 256 (Whisper's are 80 or 128)")
    output = Path(output)
    tokenizer = train_tokenizer(read_transcripts(Path(manifest)))
    model = make_model(tokenizer, chunk_length, num_mel_bins, seed)
    try:
        output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
        WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=chunk_length).save_pretrained(output)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}; choose another --output") from error
    logger.info("%s: %.2f M parameters, %d tokens", output, model.num_parameters() / 1e6, len(tokenizer))
    return output


def read_transcripts(manifest: Path) -> list[str]:
    """The transcripts of a manifest that are not empty.

    Raises:
        UserError: no such manifest, not readable as UTF-8 text, no column with transcripts, or nothing in it.
    """
    if manifest.is_dir():
        candidates = [manifest / name for name in METADATA_FILES if (manifest / name).is_file()]
        if not candidates:
            raise UserError(f"{manifest} is a folder without {' or '.join(METADATA_FILES)}: name the manifest file")
        manifest = candidates[0]
    try:
        rows = list(_read_rows(manifest))
    except OSError as error:
        raise UserError(f"cannot read the manifest {manifest}: {error.strerror or error}; check --manifest") from error
    except (ValueError, csv.Error) as error:  # ValueError: not UTF-8, or not JSON
        raise UserError(f"the manifest {manifest} is no CSV, TSV or JSONL in UTF-8: {error}") from error
    columns = {str(column) for row in rows for column in row}
    column = next((name for name in TEXT_COLUMNS if name in columns), None)
    if column is None:
        raise UserError(
            f"the manifest {manifest} has no column with transcripts: expected {', '.join(TEXT_COLUMNS)}, "
            f"found {', '.join(sorted(columns)) or 'nothing'}"
        )
    transcripts = [text for row in rows if (text := str(row.get(column) or "").strip())]
    if not transcripts:
        raise UserError(f"every transcript in column {column} of {manifest} is empty: a tokenizer needs some text")
    return transcripts


def _read_rows(manifest: Path) -> Iterator[dict[str, Any]]:
    with manifest.open(encoding="utf-8-sig", newline="") as lines:
        if manifest.suffix in (".jsonl", ".json"):
            for line in filter(str.strip, lines):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object per line, found {line.strip()[:40]!r}")
                yield row
        else:
            yield from csv.DictReader(lines, delimiter="\t" if manifest.suffix == ".tsv" else ",")


def train_tokenizer(transcripts: Iterable[str]) -> WhisperTokenizer:
    """A byte-level BPE trained on `transcripts`, and behind its tokens Whisper's special ones and its timestamps.

    Source: `get_encoding` in openai/whisper's tokenizer.py, for the special tokens and their order.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_BPE_TOKENS,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(transcripts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(
        vocab={**learned["vocab"], END: len(learned["vocab"])},
        merges=[tuple(merge) for merge in learned["merges"]],
        pad_token=END,
        additional_special_tokens=special_tokens(),
        model_max_length=MAX_LABEL_TOKENS,
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in timestamp_tokens()])
    return tokenizer


def special_tokens() -> list[str]:
    """Whisper's special tokens behind `<|endoftext|>`, in the order of their ids."""
    languages = [f"<|{code}|>" for code in LANGUAGES]
    tasks = [f"<|{task}|>" for task in TASK_IDS]
    return [START, *languages, *tasks, "<|startoflm|>", "<|startofprev|>", NO_SPEECH, NO_TIMESTAMPS]


def timestamp_tokens() -> list[str]:
    """`<|0.00|>` to `<|30.00|>` in steps of 0.02 s."""
    return [f"<|{i / TIMESTAMPS_PER_SECOND:.2f}|>" for i in range(LAST_TIMESTAMP_S * TIMESTAMPS_PER_SECOND + 1)]


def make_model(
    tokenizer: WhisperTokenizer, chunk_length: int, num_mel_bins: int, seed: int
) -> WhisperForConditionalGeneration:
    """A Whisper of 2 + 2 layers of width 128 with seeded random weights, and its generation config."""
    end = _token_id(tokenizer, END)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=num_mel_bins,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_source_positions=chunk_length * POSITIONS_PER_SECOND,
        max_target_positions=MAX_LABEL_TOKENS,
        decoder_start_token_id=_token_id(tokenizer, START),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=INIT_STD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
    # Random weights would write timestamps most of the time, and `generate` listens again from each of them: evaluating
    # the untrained model would take minutes. With a logit of 0 they hardly ever win.
    first_timestamp = _token_id(tokenizer, NO_TIMESTAMPS) + 1
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[first_timestamp:] = 0  # shared with the output layer
    model.generation_config = make_generation_config(tokenizer, config)
    return model


def make_generation_config(tokenizer: WhisperTokenizer, config: WhisperConfig) -> GenerationConfig:
    """What `generate` needs to know of a multilingual Whisper: its special tokens and what it must not write."""
    ids = {token: _token_id(tokenizer, token) for token in [END, *special_tokens()]}
    never_written = [START, *(f"<|{task}|>" for task in TASK_IDS), "<|startoflm|>", "<|startofprev|>", NO_SPEECH]
    return GenerationConfig(
        max_length=MAX_LABEL_TOKENS,
        decoder_start_token_id=ids[START],
        bos_token_id=ids[END],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
        suppress_tokens=sorted(ids[token] for token in never_written),
        begin_suppress_tokens=[_token_id(tokenizer, "Ġ"), ids[END]],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={task: ids[f"<|{task}|>"] for task in TASK_IDS},
        no_timestamps_token_id=ids[NO_TIMESTAMPS],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=TIMESTAMPS_PER_SECOND,
        return_timestamps=False,
        # For word timestamps: all heads of the decoder's upper half, openai/whisper's choice for an unknown model.
        alignment_heads=[
            [layer, head]
            for layer in range(config.decoder_layers // 2, config.decoder_layers)
            for head in range(config.decoder_attention_heads)
        ],
    )


def _token_id(tokenizer: WhisperTokenizer, token: str) -> int:
    return int(tokenizer.get_vocab()[token])


def main() -> None:
    settings = command_line.parse(Settings, "Makes a small Whisper checkpoint with random weights.")
    make_tiny_checkpoint(
        settings.manifest, settings.output, settings.chunk_length, settings.num_mel_bins, settings.seed
    )


if __name__ == "__main__":
    command_line.run(main)
