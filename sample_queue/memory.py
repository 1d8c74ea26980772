"""The arithmetic of the memory limit."""

from __future__ import annotations

import math

from config import GIB
from sample_queue.errors import CapacityError

PIECE_BYTES = 2**20
"""Most payload bytes that one push sends or one take returns. A larger sample goes alone."""

SERVER_BYTES = 2 * 2**20
"""Most bytes that a redis-server takes without samples: itself, clients, scripts, meta, rejected lines."""


def allocated(size: int) -> int:
    """Most bytes that a list element of `size` bytes takes of used_memory.

    jemalloc rounds up to a quarter of a power of two; 64 bytes each for the list node and its header.
    lua/common.lua has the same.
    """
    need = size + 64
    step = max(2 ** ((need - 1).bit_length() - 3), 16)
    return math.ceil(need / step) * step + 64


def headroom(largest: int) -> int:
    """Bytes that pushes leave free below the limit when the largest payload has `largest` bytes.

    Two pushes on their way (one may be a retry), one reply, and the copies that a take makes. lua/common.lua has the
    same.
    """
    return 3 * PIECE_BYTES + 8 * allocated(largest)


def check_capacity(limit_bytes: int, max_sample_bytes: int, samples_at_once: int) -> None:
    """Checks that the limit holds what the trainer needs at once; in-flight samples may fill half of it with a cache.

    Args:
        limit_bytes: the memory limit (`QueueStatus.limit_bytes`).
        max_sample_bytes: most bytes of one payload (`PlanCard.max_sample_bytes`).
        samples_at_once: the global batch, and all that is prefetched.

    Raises:
        CapacityError: with the `redis.max_memory_gb` that would be enough.
    """
    enough = 2 * (samples_at_once * allocated(max_sample_bytes) + headroom(max_sample_bytes) + SERVER_BYTES)
    if limit_bytes < enough:
        raise CapacityError(
            f"the queue's limit of {limit_bytes / GIB:.3f} GB is too low for {samples_at_once} samples at once of up "
            f"to {max_sample_bytes} bytes each: set --redis.max_memory_gb {_rounded_up(enough / GIB)} in both scripts "
            "(with an embedded server, `python redis_manager.py stop` first), or lower the batch size or prefetching"
        )


def check_payload(limit_bytes: int, size: int) -> None:
    """Checks that one payload fits into an empty queue.

    Raises:
        CapacityError: with the `redis.max_memory_gb` that would be enough.
    """
    enough = allocated(size) + headroom(size) + SERVER_BYTES
    if limit_bytes < enough:
        raise CapacityError(
            f"the queue's limit of {limit_bytes / GIB:.3f} GB cannot hold a sample of {size} bytes: "
            f"set --redis.max_memory_gb {_rounded_up(2 * enough / GIB)}"
        )


def _rounded_up(gigabytes: float) -> str:
    """Two significant digits, never less than `gigabytes`."""
    digits = 1 - math.floor(math.log10(gigabytes))
    return f"{math.ceil(gigabytes * 10**digits) / 10**digits:g}"
