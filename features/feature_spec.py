"""What the log-mel features of a model look like."""

from __future__ import annotations

from dataclasses import dataclass

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
        ModelFilesError: there is no such model, or it is not a Whisper model.
    """
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    try:
        settings, _ = FeatureExtractionMixin.get_feature_extractor_dict(model_name)
        return FeatureSpec(
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


def model_files_error(model_name: str, needed: str, error: Exception) -> ModelFilesError:
    """The error for a model whose files can't be loaded."""
    return ModelFilesError(
        f"cannot load model.model_name {model_name!r}: expected a folder or a Hub repository with {needed} "
        f"({one_line(error)})"
    )
