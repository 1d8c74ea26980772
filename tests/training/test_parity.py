"""Training through producer, Redis and collator is what plain Hugging Face code, and a loop by hand, give."""

from __future__ import annotations

import csv
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import soundfile
import torch
import whisper
from safetensors.torch import load_file
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, WhisperForConditionalGeneration, WhisperProcessor

from common.command_line import parse
from config import Config
from features.feature_spec import load_feature_spec
from features.log_mel import log_mel
from tests.runs import DIGITS, PRODUCER, TRAINER, Run, wait_until
from tests.servers import find_free_port
from tests.training_runs import train
from training.log import lines_behind_weights

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, BATCH = 50, 4
SHORT_STEPS = 6
RATE = 5e-4
SCHEDULE = {"model__learning_rate": RATE, "model__lr_scheduler_type": "linear", "model__warmup_steps": 5}


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording as Hugging Face's examples hold it."""

    input_features: np.ndarray
    labels: list[int]


class DataCollatorSpeechSeq2SeqWithPadding:
    """The usual collator. Source: huggingface.co/blog/fine-tune-whisper."""

    def __init__(self, processor: WhisperProcessor, decoder_start_token_id: int) -> None:
        self._processor, self._start = processor, decoder_start_token_id

    def __call__(self, clips: Sequence[Clip]) -> dict[str, torch.Tensor]:
        features = [{"input_features": clip.input_features} for clip in clips]
        batch = self._processor.feature_extractor.pad(features, return_tensors="pt")
        padded = self._processor.tokenizer.pad([{"input_ids": clip.labels} for clip in clips], return_tensors="pt")
        labels = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
        if (labels[:, 0] == self._start).all():
            labels = labels[:, 1:]
        return {"input_features": batch["input_features"], "labels": labels}


class Streams:
    """Streams of originals, made by the real producer once per feature format; each trainer gets a copy of its own."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self._folder, self.checkpoint = folder, checkpoint
        self._runs: dict[str, Run] = {}
        self._copies = 0

    def copy(self, dtype: str, **settings: object) -> Run:
        """A run whose queue holds the whole stream, in a namespace and an output folder of its own."""
        run = self._runs.get(dtype) or self._produce(dtype)
        self._copies += 1
        namespace = f"copy{self._copies}"
        with redis.Redis(port=run.redis_config.port) as client:
            for key in client.keys("test:*"):
                client.copy(key, key.replace(b"test:", f"{namespace}:".encode()))
        own = {"redis.namespace": namespace, "model.output_dir": self._folder / namespace}
        run.settings = run.settings | own | {name.replace("__", "."): value for name, value in settings.items()}
        return run

    def _produce(self, dtype: str) -> Run:
        folder = self._folder / dtype
        folder.mkdir()
        run = self._runs[dtype] = Run(
            folder, self.checkpoint, find_free_port(), recordings=STEPS * BATCH, data__feature_dtype=dtype,
            data__augmented_copies=0, data__peak_normalize=False, redis__max_memory_gb=0.2, model__logging_steps=1,
            model__per_device_train_batch_size=BATCH, **SCHEDULE,
        )  # fmt: skip
        producer = run.start(PRODUCER)
        try:
            wait_until(lambda: depth(run) == STEPS * BATCH)
        finally:
            producer.send_signal(signal.SIGTERM)
            producer.wait(60)
        return run

    def close(self) -> None:
        for run in self._runs.values():
            run.stop_redis()


def depth(run: Run) -> int:
    """Samples in the queue; 0 before there is a server."""
    try:
        with redis.Redis(port=run.redis_config.port) as client:
            return int(client.llen("test:samples"))
    except redis.ConnectionError:
        return 0


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Streams]:
    made = Streams(tmp_path_factory.mktemp("parity"), tiny_checkpoint)
    yield made
    made.close()


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(tiny_checkpoint, language="English", task="transcribe")


@pytest.fixture(scope="module")
def clips(processor: WhisperProcessor) -> dict[str, Clip]:
    """Every recording with Hugging Face's own features and labels, by its path."""
    made = {}
    with (DIGITS / "train" / "metadata.csv").open(encoding="utf-8") as file:
        for row in list(csv.DictReader(file))[: STEPS * BATCH]:
            path = DIGITS / "train" / row["file_name"]
            waveform = soundfile.read(path, dtype="float32")[0]
            features = processor.feature_extractor(waveform, sampling_rate=16000).input_features[0]
            made[str(path)] = Clip(np.asarray(features), processor.tokenizer(row["text"]).input_ids)
    return made


def train_ours(run: Run) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Trains on a stream in this process. Gives the log of each step, and the weights."""
    config = parse(Config, "", run.flags())
    trainer, _ = train(config)
    return step_logs(trainer), load_file(Path(config.model.output_dir) / "model.safetensors")


def step_logs(trainer: Seq2SeqTrainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def in_order(run: Run, clips: dict[str, Clip]) -> list[Clip]:
    """The clips in the order of the stream: from what a trainer's record calls them."""
    record = Path(str(run.settings["model.output_dir"])) / "trained_samples.jsonl"
    ids = [id for line in lines_behind_weights(record) for id in line["ids"]]  # one rank trains in order
    return [clips[id] for id in ids]


def load(checkpoint: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)


def train_plainly(
    order: list[Clip], streams: Streams, processor: WhisperProcessor, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Hugging Face's own trainer, dataset and collator on the same clips in the same order."""
    model = load(streams.checkpoint)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=RATE,
        lr_scheduler_type="linear", warmup_steps=5, logging_steps=1, save_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    collator = DataCollatorSpeechSeq2SeqWithPadding(processor, model.config.decoder_start_token_id)
    trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=order, data_collator=collator)
    trainer.train()
    return step_logs(trainer), dict(model.state_dict())


def train_by_hand(
    order: list[Clip], streams: Streams, processor: WhisperProcessor, global_batch: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A loop over the token mean of each whole optimizer step."""
    model = load(streams.checkpoint)
    model.train()
    collate = DataCollatorSpeechSeq2SeqWithPadding(processor, model.config.decoder_start_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(SHORT_STEPS):
        batch = collate(order[step * global_batch : (step + 1) * global_batch])
        logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warmup, decay = step / 5, (SHORT_STEPS - step) / (SHORT_STEPS - 5)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(warmup, decay)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, dict(model.state_dict())


def largest_relative_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of all weights together, by the norm of each tensor."""
    return max(
        float((tensor - theirs[name]).norm() / theirs[name].norm())
        for name, tensor in ours.items()
        if tensor.norm() > 0
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2)])
def test_training_is_hugging_faces_own(streams, processor, clips, tmp_path, record_property, dtype, tolerance):
    run = streams.copy(dtype)
    logs, weights = train_ours(run)
    reference_logs, reference = train_plainly(in_order(run, clips), streams, processor, tmp_path)
    assert len(logs) == len(reference_logs) == STEPS
    differences = {
        name: max(abs(a[name] / b[name] - 1) if b[name] else a[name] for a, b in zip(logs, reference_logs, strict=True))
        for name in ("loss", "grad_norm", "learning_rate")
    } | {"weights": largest_relative_difference(weights, reference)}
    print(f"{dtype} features, {STEPS} steps, largest relative differences:", differences)
    record_property("differences", str(differences))
    assert differences["learning_rate"] == 0
    assert differences["loss"] <= tolerance
    assert differences["weights"] <= tolerance
    assert differences["grad_norm"] <= 10 * tolerance
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]  # it learns


def test_accumulation_and_ranks_give_the_token_mean_of_a_loop_by_hand(streams, processor, clips):
    """Global batches of 8 with labels of unequal length: 2 × 4 accumulated, and 2 × 2 accumulated on 2 ranks."""
    settings = {"model__per_device_train_batch_size": 2, "model__max_steps": SHORT_STEPS}
    run = streams.copy("float32", model__gradient_accumulation_steps=4, **settings)
    logs, accumulated = train_ours(run)
    order = in_order(run, clips)
    assert len({len(clip.labels) for clip in order[:8]}) > 1
    losses, by_hand = train_by_hand(order, streams, processor, global_batch=8)
    assert [entry["loss"] for entry in logs] == pytest.approx(losses, rel=1e-5)
    assert largest_relative_difference(accumulated, by_hand) <= 1e-5

    run = streams.copy("float32", model__gradient_accumulation_steps=2, **settings)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    code, _, log = run.finish(TRAINER, *launcher)
    assert code == 0, log
    on_two_ranks = load_file(Path(str(run.settings["model.output_dir"])) / "model.safetensors")
    assert largest_relative_difference(on_two_ranks, by_hand) <= 1e-5


# --- OpenAI's own code ---


def openai_name(name: str) -> str:
    """What OpenAI calls a weight of Hugging Face's."""
    for theirs, ours in (
        ("model.", ""), ("layers", "blocks"), ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("final_layer_norm", "mlp_ln"),
        ("encoder_attn_layer_norm", "cross_attn_ln"), ("encoder_attn", "cross_attn"),
        ("self_attn_layer_norm", "attn_ln"), ("self_attn", "attn"), ("q_proj", "query"), ("k_proj", "key"),
        ("v_proj", "value"), ("out_proj", "out"), ("encoder.layer_norm", "encoder.ln_post"),
        ("decoder.layer_norm", "decoder.ln"), ("embed_tokens", "token_embedding"),
        ("embed_positions.weight", "positional_embedding"),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


@pytest.fixture
def waveforms() -> list[np.ndarray]:
    return [soundfile.read(path, dtype="float32")[0] for path in sorted((DIGITS / "eval").glob("*.ogg"))[:4]]


def test_features_are_openais(tiny_checkpoint, waveforms):
    spec = load_feature_spec(str(tiny_checkpoint))
    for waveform in waveforms:
        features, pad_value = log_mel(waveform, spec)
        ours = np.full((spec.num_mel_bins, spec.window_frames), pad_value, np.float32)
        ours[:, : features.shape[1]] = features
        padded = whisper.pad_or_trim(waveform, spec.window_samples)
        assert np.abs(ours - whisper.log_mel_spectrogram(padded).numpy()).max() < 1e-4


def test_a_forward_pass_with_the_same_weights_is_openais(tiny_checkpoint, waveforms):
    ours = load(tiny_checkpoint).eval()
    config = ours.config
    theirs = whisper.model.Whisper(
        whisper.model.ModelDimensions(
            config.num_mel_bins, config.max_source_positions, config.d_model, config.encoder_attention_heads,
            config.encoder_layers, config.vocab_size, config.max_target_positions, config.d_model,
            config.decoder_attention_heads, config.decoder_layers,
        )
    ).eval()  # fmt: skip
    weights = {openai_name(name): tensor for name, tensor in ours.state_dict().items() if name != "proj_out.weight"}
    assert theirs.load_state_dict(weights, strict=False).missing_keys == []
    samples = 2 * config.max_source_positions * whisper.audio.HOP_LENGTH
    padded = np.stack([whisper.pad_or_trim(waveform, samples) for waveform in waveforms])
    features = whisper.log_mel_spectrogram(torch.from_numpy(padded))
    tokens = torch.randint(0, config.vocab_size, (len(padded), 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, reference = ours(features, decoder_input_ids=tokens).logits, theirs(features, tokens)
    assert float((logits - reference).abs().max() / reference.abs().max()) < 1e-5
