"""The plan: what the sample at each position is, as a pure function of seed, position, configuration and manifest.

Nobody stores the stream. Whoever needs positions 1000 to 1031 computes what they are, on any machine, in any order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from config import Config
from corpus.recordings import Recordings
from features.feature_spec import FeatureSpec
from features.labels import TranscriptEncoder

STREAM_VERSION = 1
"""Part of every fingerprint: raise it when the same configuration makes other samples."""
SEVERAL_COPIES_VERSION = 2
"""The same for plans with several augmented copies, whose turns were other ones in version 1."""
ORIGINAL_VARIANT = 0
"""The variant that is the recording as it is."""
SHUFFLING, REPLACING, SHARING = 0, 1, 2
"""Spawn keys that keep the random streams of the order, of replacements and of shares apart from the samples'."""


class Draw(NamedTuple):
    """What the plan says of one position."""

    position: int
    epoch: int
    row: int
    """Index into the usable recordings."""
    variant: int
    """0 is the original, the others are augmented copies."""
    turn: int
    """Turn of the round robin: it decides the augmentation of a copy, and which option of it."""


@dataclass(frozen=True)
class Blocks:
    """Recordings that are read together: the row groups of a streamed data set."""

    recordings: tuple[int, ...]
    """Usable recordings of each block. The blocks follow each other in the order of the recordings."""
    sizes: tuple[int, ...]
    """Bytes of each block."""
    window_bytes: int
    """The order of an epoch is such that all blocks in use together are no larger than this and one block more."""

    @cached_property
    def _hash(self) -> int:
        return hash((self.recordings, self.sizes, self.window_bytes))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True)
class Shares:
    """How much of each corpus of a mixture comes in an epoch.

    The recordings of a corpus stand in a circle, in a random order. Each epoch takes the next weight × recordings of
    them (rounded, at least one), beginning where the epoch before it ended. So no two recordings of a corpus differ by
    more than one in how often they have come, and with a weight up to 1 none comes twice in an epoch.
    """

    recordings: tuple[int, ...]
    """Usable recordings of each corpus. The corpora follow each other in the order of the recordings."""
    weights: tuple[float, ...]
    """How often each of their recordings comes per epoch, on average, above 0."""

    @cached_property
    def taken(self) -> tuple[int, ...]:
        """Recordings of each corpus that an epoch takes; one that is taken twice counts twice."""
        pairs = zip(self.recordings, self.weights, strict=True)
        return tuple(max(1, round(rows * weight)) if rows else 0 for rows, weight in pairs)

    @cached_property
    def _hash(self) -> int:
        return hash((self.recordings, self.weights))

    def __hash__(self) -> int:
        return self._hash


@lru_cache(maxsize=2)  # a chunk may span two epochs
def _visits(seed: int, epoch: int, shares: Shares) -> np.ndarray:
    """The recordings that an epoch takes, int32 or int64 `[2, samples]`: their rows, and how often each came before."""
    rows, rounds, first = [], [], 0
    for corpus, (recordings, taken) in enumerate(zip(shares.recordings, shares.taken, strict=True)):
        generator = np.random.default_rng(np.random.SeedSequence((seed, corpus), spawn_key=(SHARING,)))
        before, places = np.divmod(np.arange(epoch * taken, (epoch + 1) * taken), max(1, recordings))
        rows.append(first + generator.permutation(recordings)[places])
        rounds.append(before)
        first += recordings
    visits = np.stack([np.concatenate(rows), np.concatenate(rounds)])
    return visits.astype(np.int32) if first < 2**31 else visits


@dataclass(frozen=True)
class Plan:
    """The whole stream of samples, without the samples."""

    seed: int
    rows: int
    """Usable recordings."""
    epochs: int
    include_original: bool
    augmented_copies: int
    blocks: Blocks | None = None
    """None: an epoch is shuffled as a whole. Otherwise each block is used in one stretch of the epoch and then left."""
    shares: Shares | None = None
    """None: each recording comes once per epoch."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError("a plan needs at least one usable recording")
        if self.blocks and sum(self.blocks.recordings) != self.rows:
            raise ValueError(f"blocks of {sum(self.blocks.recordings)} recordings in a plan of {self.rows}")
        if self.shares and (self.blocks or sum(self.shares.recordings) != self.rows):
            raise ValueError(
                f"shares of {sum(self.shares.recordings)} recordings in a plan of {self.rows}, or of blocks"
            )

    @cached_property
    def samples_per_epoch(self) -> int:
        """Positions of an epoch: each variant of each recording once, or as often as its share says."""
        return (sum(self.shares.taken) if self.shares else self.rows) * self._variants

    @cached_property
    def _variants(self) -> int:
        return int(self.include_original) + self.augmented_copies

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
        place = _order(self.seed, epoch, self.samples_per_epoch, self.blocks).item(index)
        number, variant = divmod(place, self._variants)
        variant += 0 if self.include_original else 1
        row, visit = number, epoch
        if self.shares:
            visits = _visits(self.seed, epoch, self.shares)
            row, visit = visits.item(0, number), visits.item(1, number)
        # The copies of a recording take consecutive turns, over all its visits: none comes twice.
        return Draw(position, epoch, row, variant, turn=row + visit * self.augmented_copies + variant)

    def generator(self, position: int) -> np.random.Generator:
        """Source of all randomness of the sample at `position`."""
        return np.random.default_rng(np.random.SeedSequence((self.seed, position)))

    def replacement(self, position: int, attempt: int) -> int:
        """Row that stands in at `position` when `attempt` rows before it could not be decoded."""
        seed = np.random.SeedSequence((self.seed, position, attempt), spawn_key=(REPLACING,))
        return int(np.random.default_rng(seed).integers(self.rows))


@lru_cache(maxsize=2)  # a chunk may span two epochs
def _order(seed: int, epoch: int, samples: int, blocks: Blocks | None) -> np.ndarray:
    """Permutation of an epoch, int32 or int64 `[samples]`.

    With blocks it is a sliding window: the blocks are laid end to end in random order, and each sample moves back from
    the start of its block by a random part of the window. So a block comes in, is used up evenly while one window
    passes, and never comes back in this epoch.
    """
    generator = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(SHUFFLING,)))
    dtype = np.int32 if samples < 2**31 else np.int64
    if not blocks:
        order = np.arange(samples, dtype=dtype)
        generator.shuffle(order)
        return order
    turns = generator.permutation(len(blocks.sizes))
    sizes = np.array(blocks.sizes, np.int64)
    starts = np.empty_like(sizes)
    starts[turns] = np.cumsum(sizes[turns]) - sizes[turns]
    variants = samples // sum(blocks.recordings)
    keys = np.repeat(starts, np.array(blocks.recordings) * variants) + blocks.window_bytes * generator.random(samples)
    return np.argsort(keys, kind="stable").astype(dtype)


def make_plan(config: Config, recordings: Recordings) -> Plan:
    """The plan for these recordings under this configuration."""
    data, blocks, shares = config.data, None, None
    if data.streaming and recordings.blocks is not None:
        usable = recordings.blocks[recordings.blocks[:, 0] > 0]
        blocks = Blocks(tuple(usable[:, 0].tolist()), tuple(usable[:, 1].tolist()), data.streaming_cache_bytes // 2)
    if any(each.weight != 1 for each in recordings.corpora):
        counts, weights = zip(*((each.recordings, each.weight) for each in recordings.corpora), strict=True)
        shares = Shares(counts, weights)
    return Plan(data.seed, len(recordings), data.epochs, data.include_original, data.augmented_copies, blocks, shares)


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
        augmentations: identity of what the augmentations depend on besides the settings: files, versions, code.
    """
    augmentation = asdict(config.audio_augmentation)
    del augmentation["bg_noise_file_list"]  # paths; `augmentations` tells what is in them
    if not augmentation["extra_transforms"]:  # so that plans from before there were any keep their fingerprint
        del augmentation["extra_transforms"], augmentation["extra_transforms_prob"]
    plan = asdict(make_plan(config, recordings))
    for name in ("blocks", "shares"):
        if not plan[name]:
            del plan[name]
    parts = [
        STREAM_VERSION if config.data.augmented_copies < 2 else SEVERAL_COPIES_VERSION,
        plan,
        recordings.digest,
        asdict(spec),
        encoder.digest,
        augmentation,
        augmentations,
        [config.data.peak_normalize, config.data.feature_dtype, config.data.min_duration_s, config.data.max_duration_s],
    ]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
