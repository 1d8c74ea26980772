"""The plan: what the sample at each position is, as a pure function of seed, position, configuration and manifest.

Nobody stores the stream. Whoever needs positions 1000 to 1031 computes what they are, on any machine, in any order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from config import Config
from data_processor import FeatureSpec, TranscriptEncoder
from recordings import Recordings

STREAM_VERSION = 1
"""Part of every fingerprint: raise it when the same configuration makes other samples."""
ORIGINAL = 0
"""The variant that is the recording as it is."""
SHUFFLING, REPLACING = 0, 1
"""Spawn keys that keep the random streams of the order and of replacements apart from those of the samples."""


@dataclass(frozen=True)
class Draw:
    """What the plan says of one position."""

    position: int
    epoch: int
    row: int
    """Index into the usable recordings."""
    variant: int
    """0 is the original, the others are augmented copies."""
    turn: int
    """Where the round robin over augmentations and their options stands."""


@dataclass(frozen=True)
class Plan:
    """The whole stream of samples, without the samples."""

    seed: int
    rows: int
    """Usable recordings."""
    epochs: int
    include_original: bool
    augmented_copies: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError("a plan needs at least one usable recording")

    @property
    def samples_per_epoch(self) -> int:
        """Positions in which each variant of each recording comes once."""
        return self.rows * (int(self.include_original) + self.augmented_copies)

    def __len__(self) -> int:
        """Number of positions, n."""
        return self.epochs * self.samples_per_epoch

    def draw(self, position: int) -> Draw:
        """What is at `position`.

        Raises:
            IndexError: the plan has no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of a plan of {len(self)}")
        epoch, index = divmod(position, self.samples_per_epoch)
        place = int(_order(self.seed, epoch, self.samples_per_epoch)[index])
        row, variant = divmod(place, self.samples_per_epoch // self.rows)
        variant += 0 if self.include_original else 1
        return Draw(position, epoch, row, variant, turn=row + epoch + variant)

    def generator(self, position: int) -> np.random.Generator:
        """Source of all randomness of the sample at `position`."""
        return np.random.default_rng(np.random.SeedSequence((self.seed, position)))

    def replacement(self, position: int, attempt: int) -> int:
        """Row that stands in at `position` when `attempt` rows before it could not be decoded."""
        seed = np.random.SeedSequence((self.seed, position, attempt), spawn_key=(REPLACING,))
        return int(np.random.default_rng(seed).integers(self.rows))


@lru_cache(maxsize=2)  # a chunk may span two epochs
def _order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """Permutation of an epoch, int32 or int64 `[samples]`."""
    generator = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(SHUFFLING,)))
    order = np.arange(samples, dtype=np.int32 if samples < 2**31 else np.int64)
    generator.shuffle(order)
    return order


def make_plan(config: Config, recordings: Recordings) -> Plan:
    """The plan for these recordings under this configuration."""
    data = config.data
    return Plan(data.seed, len(recordings), data.epochs, data.include_original, data.augmented_copies)


def fingerprint(
    config: Config, recordings: Recordings, spec: FeatureSpec, encoder: TranscriptEncoder, augmentations: str
) -> str:
    """Identity of a stream: two runs with equal fingerprints have equal samples at every position.

    Paths are left out, so that another machine, with the same files elsewhere, comes to the same one.

    Args:
        config: all settings.
        recordings: the usable recordings.
        spec: the model's feature settings.
        encoder: the model's labels.
        augmentations: identity of what the augmentations read from files.
    """
    augmentation = asdict(config.audio_augmentation)
    del augmentation["bg_noise_file_list"]  # paths; `augmentations` tells what is in them
    parts = [
        STREAM_VERSION,
        asdict(make_plan(config, recordings)),
        recordings.digest,
        asdict(spec),
        encoder.digest,
        augmentation,
        augmentations,
        [config.data.peak_normalize, config.data.feature_dtype, config.data.min_duration_s, config.data.max_duration_s],
    ]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
