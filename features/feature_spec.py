"""What the log-mel features of a model look like."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from common.errors import UserError, one_line


class ModelFilesError(UserError):
    """The model's folder or Hub repository lacks what is needed to make samples for it."""


@dataclass(frozen=True)
class FeatureSpec:
    """What the log-mel features of a model look like."""

    num_mel_bins: int
    sampling_rate: int
    """In Hz."""
    n_fft: int
    """Samples per analysis window."""
    hop_length: int
    """Samples from one frame to the next."""
    chunk_length_s: int
    """The model's window in seconds: every input is padded to it."""

    @property
    def window_samples(self) -> int:
        """Samples in the model's window."""
        return self.chunk_length_s * self.sampling_rate

    @property
    def window_frames(self) -> int:
        """Log-mel frames in the model's window."""
        return self.window_samples // self.hop_length

    def check_sample_rate(self, sample_rate: int) -> None:
        """Refuses a configured sampling rate that is not the model's.

        Raises:
            UserError: the two differ.
        """
        if sample_rate != self.sampling_rate:
            raise UserError(
                f"audio_augmentation.sample_rate is {sample_rate} Hz but the model takes {self.sampling_rate} Hz; "
                f"set --audio_augmentation.sample_rate {self.sampling_rate}"
            )


def load_feature_spec(model_name: str) -> FeatureSpec:
    """Reads the feature settings of a model from its preprocessor configuration.

    Args:
        model_name: Hub name or folder.

    Raises:
        ModelFilesError: there is no such model, it is not a Whisper model, or its files do not fit each other.
    """
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    try:
        settings, _ = FeatureExtractionMixin.get_feature_extractor_dict(model_name)
        spec = FeatureSpec(
            num_mel_bins=int(settings["feature_size"]),
            sampling_rate=int(settings["sampling_rate"]),
            n_fft=int(settings["n_fft"]),
            hop_length=int(settings["hop_length"]),
            chunk_length_s=int(settings["chunk_length"]),
        )
    except (OSError, ValueError) as error:
        raise model_files_error(model_name, "a preprocessor_config.json", error) from error
    except KeyError as error:
        raise ModelFilesError(
            f"the preprocessor configuration of {model_name!r} has no {error}: not a Whisper model?"
        ) from error
    config = load_model_config(model_name, required=False)
    for what, features, name, per_unit in (
        ("mel bins", spec.num_mel_bins, "num_mel_bins", 1),
        ("frames in a window", spec.window_frames, "max_source_positions", 2),
    ):
        model = per_unit * config.get(name, features // per_unit)
        if features != model:
            raise ModelFilesError(
                f"the preprocessor configuration of {model_name!r} gives {features} {what}, its config.json {model}: "
                "they belong to different models; copy preprocessor_config.json from the model that it was trained from"
            )
    return spec


def load_model_config(model_name: str, file_name: str = "config.json", *, required: bool = True) -> dict[str, Any]:
    """Reads one of a model's JSON files.

    Args:
        model_name: Hub name or folder.
        file_name: which file; config.json is checked to be a Whisper's.
        required: whether a missing file is an error; otherwise it counts as empty.

    Raises:
        ModelFilesError: there is no such model, or it is not a Whisper model.
    """
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(model_name, file_name, _raise_exceptions_for_missing_entries=required)
        if path is None and not required:
            return {}
        with open(path or "", encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError) as error:
        raise model_files_error(model_name, f"a {file_name}", error) from error
    if not isinstance(config, dict):
        raise ModelFilesError(f"the {file_name} of {model_name!r} is a {type(config).__name__}, expected an object")
    if file_name == "config.json":
        for name in ("max_target_positions", "max_source_positions", "num_mel_bins", "vocab_size"):
            if not isinstance(config.get(name), int):
                raise ModelFilesError(f"the config.json of {model_name!r} has no {name}: not a Whisper model?")
    return config


def model_files_error(model_name: str, needed: str, error: Exception) -> ModelFilesError:
    """The error for a model whose files can't be loaded."""
    return ModelFilesError(
        f"cannot load model.model_name {model_name!r}: expected a folder or a Hub repository with {needed} "
        f"({one_line(error)})"
    )
