"""Every setting of the project, as dataclasses: edit the defaults here, or override any of them on the command line.

Both scripts take a flag for each field, nested by group:

    python prepro_add2radis.py --redis.port 6390 --data.train_manifest train.csv
    python final_training_medium.py --help

A value that cannot work is refused here, when the configuration is made, not hours later.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from common.errors import ConfigurationError, UserError
from common.files import cannot_write, written_whole
from common.redaction import without_secrets

GIB = 2**30
"""Bytes in one gigabyte as `max_memory_gb` counts them."""

HUB_MANIFEST = re.compile(
    r"hf://(?:(?P<folder>/.+)|(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^/:]+))?(/(?P<config>[^/:@]+))?)"
    r":(?P<split>[\w.]+(\+[\w.]+)*)"
)
"""A data set on the Hugging Face Hub, hf://org/name@revision/config:split, or a folder like one, hf:///folder:split."""
TRANSFORM = re.compile(r"\s*([^\W\d]\w*\.)+[^\W\d]\w*(\s|$)")
"""How an entry of `audio_augmentation.extra_transforms` begins: the import path of a class."""
METRICS = ("cer", "wer", "cer_normalized", "wer_normalized", "loss")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigurationError(f"{name} is {value!r}: expected {expected}")


def _require_positive(config: object, group: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{group}.{name}", value, "a number above 0")


def _require_fraction(config: object, group: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value <= 1, f"{group}.{name}", value, "a number from 0 to 1")


@dataclass
class RedisConfig:
    """The virtual container: a Redis list between the producer and the trainer."""

    host: str = "localhost"
    """Host of the Redis server."""
    port: int = 6380
    """TCP port of the Redis server, 1 to 65535."""
    max_memory_gb: float = 49.0
    """Limit on the memory Redis uses, in GB of 2^30 bytes, samples in flight included. Decimals are allowed (0.2)."""
    url: str = ""
    """Full address instead of host and port: redis://, rediss:// (TLS) or unix://. The user and the password come from
    the URL or from the environment variables REDIS_USERNAME and REDIS_PASSWORD, and are never printed."""
    namespace: str = "whisper"
    """Prefix of this run's keys in Redis. Two runs on one server need two namespaces."""
    embedded: bool = True
    """Start a private redis-server when the host is this machine and nothing listens on the port."""
    sleep_seconds: float = 1.0
    """How long the producer sleeps before it looks again whether the container has room, in seconds."""
    producer_timeout_s: float = 600.0
    """The trainer gives up when it needs samples and no producer has been seen for this long, in seconds."""
    reconnect_timeout_s: float = 600.0
    """How long a running script keeps trying to reach a server that went away, in seconds."""

    def __post_init__(self) -> None:
        _require(1 <= self.port <= 65535, "redis.port", self.port, "a port from 1 to 65535")
        _require_positive(self, "redis", "max_memory_gb", "sleep_seconds", "producer_timeout_s", "reconnect_timeout_s")
        _require(bool(self.namespace.strip()), "redis.namespace", self.namespace, "a name that is not empty")
        if "://" in self.host:
            raise ConfigurationError(f"redis.host is {without_secrets(self.host)}: give a URL as --redis.url")
        scheme = self.url.partition("://")[0] if "://" in self.url else ""
        if self.url and scheme not in ("redis", "rediss", "unix"):
            raise ConfigurationError(
                f"redis.url starts with {scheme + '://' if scheme else 'no scheme'!r}: "
                "expected redis://host:port, rediss://host:port or unix:///path/to/socket"
            )

    @property
    def max_memory_bytes(self) -> int:
        """`max_memory_gb` in bytes."""
        return int(self.max_memory_gb * GIB)

    @property
    def address(self) -> str:
        """Where the server is, without user and password: for messages and logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host  # an IPv6 address
        return without_secrets(self.url) if self.url else f"{host}:{self.port}"


@dataclass
class DataConfig:
    """Which recordings are read, how often, and what is refused."""

    train_manifest: str = "data/train/metadata.csv"
    """Training manifest: a CSV, TSV or JSONL file, or a folder with a metadata.csv (or .jsonl). Columns: audio (or
    file_name, path) and text (or transcription, transcript, sentence), optional duration (seconds) and id. Relative
    audio paths are relative to the manifest. Or Parquet files with the audio's bytes in the audio column: a file, a
    folder of them or a pattern (data/train-*.parquet). Manifest, Parquet and audio may be URLs that fsspec knows
    (s3://, gs://, https://). Or a data set in Parquet on the Hugging Face Hub: hf://org/name:split,
    hf://org/name/config:split, hf://org/name@revision:split; splits are joined by +."""
    eval_manifest: str = ""
    """Evaluation manifest of the same form. Empty: no evaluation, no best model, no early stopping."""
    format: str = ""
    """How both manifests are written, by its name in docs/sources.md (kaldi, common_voice, webdataset, …). Empty: it is
    found out by looking."""
    audio_column: str = ""
    """Name of the audio column. Empty: the first of audio, file_name, path that the manifest has."""
    text_column: str = ""
    """Name of the transcript column. Empty: the first of text, transcription, transcript, sentence that the manifest
    has."""
    channel: int = -1
    """Channel of the files that is used, from 0, where the manifest has no column channel. -1: the mean of all
    channels, unless they cancel each other out."""
    epochs: int = 5
    """How often each recording is used, with other augmentations each time. At least 1."""
    seed: int = 42
    """Seed of the order of the samples, of every augmentation, and of the training. At least 0."""
    num_workers: int = 0
    """Processes of this machine that scan the manifest and augment. 0: one per CPU core."""
    executor: str = ""
    """Address of a dask.distributed scheduler whose workers augment (tcp://host:8786, tls://host:8786): docs/scaling.md
    tells how to start them. Empty: processes of this machine do."""
    include_original: bool = True
    """Also train on each recording as it is, besides its augmented copies."""
    augmented_copies: int = 1
    """Augmented copies per recording and epoch. 0: originals only."""
    peak_normalize: bool = True
    """Scale each recording to a peak of 1 before anything else."""
    min_duration_s: float = 0.1
    """Shorter recordings are rejected, in seconds."""
    max_duration_s: float = 30.0
    """Longer recordings are rejected, in seconds; the model's own window (30 s) applies as well."""
    max_rejected_fraction: float = 0.05
    """Share of the manifest's rows that may be unusable, 0 to 1; above it the run stops."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Number format of the log-mel features in Redis. float16 halves the memory at a rounding error below 1e-3."""
    chunk_size: int = 32
    """Samples that a worker makes per task. At least 1; it changes nothing in the samples."""
    cache_dir: str = ".cache"
    """Folder for what is kept between runs: the memory-mapped manifest, scan results, room impulse responses, and audio
    unpacked from Parquet."""
    streaming: bool = False
    """For Parquet: False unpacks all its audio into cache_dir, once. True unpacks row groups as they are needed, in at
    most streaming_cache_gb, for audio that does not fit on the disk; recordings are then shuffled in a sliding window
    instead of over the whole epoch."""
    streaming_cache_gb: float = 20.0
    """Disk that streamed audio may take in cache_dir, in GB of 2^30 bytes. Half of it is the window in which recordings
    are shuffled."""
    retry_timeout_s: float = 600.0
    """How long a store of audio at URLs that does not answer is asked again before the run stops, in seconds."""

    def __post_init__(self) -> None:
        _require_positive(self, "data", "epochs", "chunk_size", "max_duration_s", "streaming_cache_gb")
        for name in ("seed", "num_workers", "augmented_copies", "min_duration_s", "retry_timeout_s"):
            _require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "a number that is not negative")
        _require(self.channel >= -1, "data.channel", self.channel, "a channel from 0, or -1")
        _require_fraction(self, "data", "max_rejected_fraction")
        _require(
            self.min_duration_s < self.max_duration_s,
            "data.min_duration_s",
            self.min_duration_s,
            f"less than data.max_duration_s ({self.max_duration_s})",
        )
        if self.executor:
            address = urlsplit(self.executor)
            _require(
                address.scheme in ("tcp", "tls", "ws", "wss") and bool(address.hostname) and _port(self.executor) > 0,
                "data.executor",
                self.executor,
                "the address of a Dask scheduler, tcp://host:port or tls://host:port, or nothing",
            )
        if not self.include_original and not self.augmented_copies:
            raise ConfigurationError(
                "data.include_original is False and data.augmented_copies is 0: no sample would be made"
            )
        for name in ("train_manifest", "eval_manifest"):
            value = getattr(self, name)
            if value.startswith("hf://") and not value.startswith("hf://datasets/"):
                _require(bool(HUB_MANIFEST.fullmatch(value)), f"data.{name}", value, "hf://org/name:split")

    @property
    def streaming_cache_bytes(self) -> int:
        """`streaming_cache_gb` in bytes."""
        return int(self.streaming_cache_gb * GIB)


@dataclass
class ModelConfig:
    """The Whisper model and its training (`Seq2SeqTrainingArguments` of Hugging Face)."""

    model_name: str = "openai/whisper-medium"
    """Whisper checkpoint: a name on the Hugging Face Hub or a folder."""
    language: str = "Bengali"
    """Language of the transcripts, as Whisper names it (Bengali or bn). Empty for English-only models, and to train a
    multilingual one without a language token."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """transcribe: same language; translate: the transcripts are English."""
    output_dir: str = "out"
    """Folder for checkpoints, logs, the rejected report and the final model."""
    max_steps: int = -1
    """Stop after this many optimizer steps. -1: when every sample of the plan has been trained once."""
    per_device_train_batch_size: int = 2
    """Samples per device and micro-batch."""
    per_device_eval_batch_size: int = 2
    """Recordings per device and evaluation batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    learning_rate: float = 1e-5
    """Peak learning rate of AdamW."""
    lr_scheduler_type: str = "cosine_with_restarts"
    """Learning-rate schedule, by its Hugging Face name."""
    warmup_steps: float = 888
    """Optimizer steps of linear warm-up. Below 1: a share of all steps."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    dropout: float = 0.0
    """Dropout probability in the model, 0 to 1."""
    gradient_checkpointing: bool = False
    """Trade speed for GPU memory: recompute activations in the backward pass."""
    freeze_feature_encoder: bool = False
    """Train the decoder only."""
    bf16: bool = False
    """Train in bfloat16 mixed precision (Ampere GPUs or newer)."""
    tf32: bool = True
    """Use TF32 matrix products where the GPU has them; no effect elsewhere."""
    eval_steps: int = 2000
    """Evaluate every so many optimizer steps."""
    save_steps: int = 2000
    """Save a checkpoint every so many optimizer steps."""
    save_total_limit: int = 2
    """Checkpoints to keep, at least 2: the newest must not be the only one while it is written."""
    logging_steps: int = 25
    """Log every so many optimizer steps."""
    predict_with_generate: bool = True
    """Evaluate what the model writes (CER, WER), not only its loss."""
    generation_max_length: int = 448
    """Most tokens of one generated transcript; the model's own limit applies as well."""
    load_best_model_at_end: bool = True
    """Give back the best checkpoint, not the last, when there is an evaluation."""
    metric_for_best_model: str = "cer"
    """What best means: cer, wer, cer_normalized, wer_normalized or loss."""
    greater_is_better: bool = False
    """Whether a larger metric is better. Always False: all metrics are error rates or losses."""
    early_stopping_patience: int = 10
    """Stop after this many evaluations in a row without a better one. 0: never."""
    dataloader_num_workers: int = 0
    """Processes that fetch and pad batches ahead of training. 0: the trainer does it itself."""
    log_samples: bool = False
    """Append a line per trained micro-batch (step, rank, session, positions, ids, loss) to
    output_dir/trained_samples.jsonl."""
    trainer_arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Any further Seq2SeqTrainingArguments, as pairs of name and value: max_grad_norm 0.5 report_to tensorboard."""

    def __post_init__(self) -> None:
        _require_positive(
            self, "model", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "learning_rate", "eval_steps", "save_steps", "logging_steps", "generation_max_length",
        )  # fmt: skip
        for name in ("warmup_steps", "weight_decay", "early_stopping_patience", "dataloader_num_workers"):
            _require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "a number that is not negative")
        _require_fraction(self, "model", "dropout")
        _require(self.max_steps == -1 or self.max_steps > 0, "model.max_steps", self.max_steps, "-1, or above 0")
        _require(
            self.save_total_limit >= 2,
            "model.save_total_limit",
            self.save_total_limit,
            "at least 2, or a crash while saving could leave no checkpoint",
        )
        _require(bool(self.model_name), "model.model_name", self.model_name, "a Hub name or a folder")
        _require(bool(self.output_dir), "model.output_dir", self.output_dir, "a folder")
        _require(
            self.metric_for_best_model in METRICS,
            "model.metric_for_best_model",
            self.metric_for_best_model,
            "one of " + ", ".join(METRICS),
        )
        _require(not self.greater_is_better, "model.greater_is_better", True, "False: the lowest error is the best")
        if not self.predict_with_generate and self.metric_for_best_model != "loss":
            raise ConfigurationError(
                f"model.metric_for_best_model is {self.metric_for_best_model!r}, which needs "
                "model.predict_with_generate; set that to True, or the metric to loss"
            )
        mine = {f.name for f in dataclasses.fields(self)} & set(self.trainer_arguments)
        if mine:
            name = sorted(mine)[0]
            raise ConfigurationError(f"model.trainer_arguments holds {name!r}: set model.{name} instead")


@dataclass
class AudioAugmentationConfig:
    """The eight augmentations, and any others by name.

    Round robin (the default) gives each augmented copy one augmentation, rotating over all whose probability is above
    0, and over the options of each. With `multiple_aug` each augmentation fires by its own probability instead. A
    probability of 0 switches an augmentation off in both.
    """

    sample_rate: int = 16000
    """Sampling rate of all processing, in Hz. Must be the model's (16000 for every Whisper)."""
    multiple_aug: bool = False
    """False: one augmentation per copy, in turn. True: each augmentation by its own probability."""
    speed_aug_prob: float = 0.5
    """Probability of a change of tempo at constant pitch, 0 to 1."""
    pitch_shift_prob: float = 0.25
    """Probability of a pitch shift at constant tempo, 0 to 1."""
    far_field_effect_prob: float = 0.25
    """Probability of a distant microphone in a simulated room, 0 to 1."""
    bg_noise_aug_prob: float = 0.25
    """Probability of background noise from bg_noise_file_list, 0 to 1."""
    color_noise_prob: float = 0.25
    """Probability of synthetic coloured noise, 0 to 1."""
    time_n_freq_masking_prob: float = 0.25
    """Probability of time and frequency masks on the log-mel (SpecAugment), 0 to 1."""
    down_upsampling_prob: float = 0.25
    """Probability of the effect of an old microphone: down-sampling, then up-sampling, 0 to 1."""
    speech_enhance_prob: float = 0.25
    """Probability of speech enhancement (noise reduction), 0 to 1."""
    speed_factors: list[float] = field(default_factory=lambda: [0.75, 0.8, 0.9, 1.1, 1.25, 1.5])
    """Tempo factors, 0.25 to 4: 1.25 is a quarter faster. A factor that would make a recording longer than the model's
    window is passed over."""
    pitch_shift_range: list[float] = field(default_factory=lambda: [3.0, -3.0])
    """Pitch shifts in semitones, -12 to 12."""
    far_field_distances: list[float] = field(default_factory=lambda: [1.0, 3.0, 5.0])
    """Distances between speaker and microphone, in metres, 0.3 to 10."""
    far_field_rooms: int = 16
    """Simulated rooms per distance; their impulse responses are made once and kept in data.cache_dir."""
    bg_noise_focus_min_max: list[float] = field(default_factory=lambda: [0.8, 0.9, 0.95])
    """Share of the speech in the mix with background noise, between 0 and 1. The signal-to-noise ratio is
    20 log10(focus / (1 - focus)) dB: 12.0, 19.1 and 25.6 dB."""
    bg_noise_file_list: list[str] = field(default_factory=list)
    """Audio files, or folders of audio files, with background noise. Empty: that augmentation is left out."""
    noise_gain_min_max: list[float] = field(default_factory=lambda: [0.1])
    """Level of coloured noise relative to the speech (RMS), above 0 to 1: 0.1 is a signal-to-noise ratio of 20 dB."""
    noise_colors: list[str] = field(default_factory=lambda: ["white", "pink", "brown", "blue", "violet"])
    """Colours of the synthetic noise: white (0 dB/octave), pink (-3), brown (-6), blue (+3), violet (+6)."""
    down_upsampling_min_max: list[int] = field(default_factory=lambda: [2000, 4000, 8000])
    """Sampling rates to go down to, in Hz, 1000 to sample_rate; what lies above half of it is lost."""
    time_mask_max_frames: int = 5
    """Longest time mask, in frames of 10 ms. 0: none."""
    freq_mask_max_bins: int = 20
    """Widest frequency mask, in mel bins. 0: none."""
    time_masks: int = 2
    """Time masks per sample."""
    freq_masks: int = 2
    """Frequency masks per sample."""
    extra_transforms: list[str] = field(default_factory=list)
    """Further augmentations: transforms of audiomentations or classes of your own, each as one string of import path
    and arguments: "audiomentations.ClippingDistortion min_percentile_threshold=0" "my_module.MyTransform strength=0.5".
    An instance is called as instance(samples=float32 array, sample_rate=int) and returns the same, at most as long as
    the model's window. A constructor's argument p is set to 1.0 unless given here. Random numbers must come from random
    or numpy.random, which are seeded before each call."""
    extra_transforms_prob: float = 0.25
    """Probability of each of extra_transforms, 0 to 1."""

    def __post_init__(self) -> None:
        group = "audio_augmentation"
        _require_positive(self, group, "sample_rate", "far_field_rooms")
        _require_fraction(self, group, *(f.name for f in dataclasses.fields(self) if f.name.endswith("_prob")))
        for name in ("time_mask_max_frames", "freq_mask_max_bins", "time_masks", "freq_masks"):
            _require(getattr(self, name) >= 0, f"{group}.{name}", getattr(self, name), "a number that is not negative")
        self._require_options("speed_factors", self.speed_aug_prob, 0.25, 4)
        self._require_options("pitch_shift_range", self.pitch_shift_prob, -12, 12)
        self._require_options("far_field_distances", self.far_field_effect_prob, 0.3, 10)
        self._require_options("bg_noise_focus_min_max", self.bg_noise_aug_prob, 0.01, 0.999)
        self._require_options("noise_gain_min_max", self.color_noise_prob, 1e-4, 1)
        self._require_options("down_upsampling_min_max", self.down_upsampling_prob, 1000, self.sample_rate)
        colors = {"white", "pink", "brown", "blue", "violet"}
        wrong = set(self.noise_colors) - colors
        _require(not wrong, f"{group}.noise_colors", sorted(wrong), "colours among " + ", ".join(sorted(colors)))
        for text in self.extra_transforms:
            expected = "'module.Class name=value ...', such as 'audiomentations.Gain min_gain_db=-6'"
            _require(bool(TRANSFORM.match(text)), f"{group}.extra_transforms", text, expected)
        if self.color_noise_prob and not self.noise_colors:
            raise ConfigurationError(
                f"{group}.noise_colors is empty: name a colour, or set {group}.color_noise_prob to 0"
            )

    def _require_options(self, name: str, prob: float, low: float, high: float) -> None:
        options = getattr(self, name)
        if prob and not options:
            raise ConfigurationError(f"audio_augmentation.{name} is empty: give an option, or set the probability to 0")
        for option in options:
            _require(low <= option <= high, f"audio_augmentation.{name}", option, f"numbers from {low} to {high}")


@dataclass
class Config:
    """All settings of both scripts."""

    redis: RedisConfig = field(default_factory=RedisConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    audio_augmentation: AudioAugmentationConfig = field(default_factory=AudioAugmentationConfig)

    def __post_init__(self) -> None:
        model = self.model
        if self.data.eval_manifest and model.load_best_model_at_end and model.save_steps % model.eval_steps:
            raise ConfigurationError(
                f"model.save_steps is {model.save_steps}: with model.load_best_model_at_end it must be a multiple of "
                f"model.eval_steps ({model.eval_steps}), so that the best evaluation has a checkpoint"
            )

    def to_dict(self) -> dict[str, Any]:
        """All settings as nested dictionaries, without secrets (`common.redaction`)."""
        settings: dict[str, Any] = _shown(dataclasses.asdict(self))
        return settings

    def save(self, path: Path) -> None:
        """Writes `to_dict` as JSON.

        Raises:
            UserError: the folder of `path` cannot be made or written.
        """
        try:
            with written_whole(path) as file:
                file.write((json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise cannot_write(UserError, path, error, "make room, or choose another --model.output_dir") from error


def _port(url: str) -> int:
    """The port that `url` names; 0: none, or none that exists."""
    try:
        return urlsplit(url).port or 0
    except ValueError:
        return 0


def _shown(setting: Any) -> Any:
    """A setting without secrets: those of URLs, and the values of options such as hub_token."""
    if isinstance(setting, dict):
        return {name: "…" if name.endswith("_token") and value else _shown(value) for name, value in setting.items()}
    if isinstance(setting, list):
        return [_shown(value) for value in setting]
    return without_secrets(setting) if isinstance(setting, str) else setting
