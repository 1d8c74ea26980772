"""Recordings that come twice, within a corpus and in two of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.checking.tallies import EXAMPLES


@dataclass(frozen=True)
class Repeats:
    """Recordings that repeat an earlier one of the same corpus."""

    count: int
    """Recordings, the first of each kind not counted."""
    examples: list[tuple[int, int]]
    """Index of the earlier and of the later one, a few."""


def find_repeats(rows: np.ndarray) -> tuple[Repeats, Repeats]:
    """Recordings with the audio of an earlier one.

    Args:
        rows: `tallies.ROW` of each recording.

    Returns:
        Those with its transcript too; and those with another transcript, of which at most one can be right.
    """
    known = np.flatnonzero(rows["audio"])
    order = known[np.lexsort((known, rows["transcript"][known], rows["audio"][known]))]
    earlier, later = order[:-1], order[1:]
    same_audio = rows["audio"][earlier] == rows["audio"][later]
    same_text = rows["transcript"][earlier] == rows["transcript"][later]
    return _repeats(earlier, later, same_audio & same_text), _repeats(earlier, later, same_audio & ~same_text)


def _repeats(earlier: np.ndarray, later: np.ndarray, chosen: np.ndarray) -> Repeats:
    pairs = zip(earlier[chosen][:EXAMPLES].tolist(), later[chosen][:EXAMPLES].tolist(), strict=True)
    return Repeats(int(chosen.sum()), [(min(pair), max(pair)) for pair in pairs])


def find_shared(rows: np.ndarray, others: np.ndarray) -> Repeats:
    """Recordings of a corpus whose audio another corpus has as well.

    Args:
        rows: `tallies.ROW` of each recording of the corpus.
        others: those of the other.

    Returns:
        Their number, and a few with the index of the same audio in the other corpus: (index there, index here).
    """
    known = np.flatnonzero(others["audio"])
    order = known[np.argsort(others["audio"][known], kind="stable")]
    digests = others["audio"][order]
    shared = np.flatnonzero((rows["audio"] != 0) & np.isin(rows["audio"], digests))
    examples = [(int(order[np.searchsorted(digests, rows["audio"][index])]), int(index)) for index in shared[:EXAMPLES]]
    return Repeats(len(shared), examples)
