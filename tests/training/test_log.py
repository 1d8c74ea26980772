"""The record of what was trained tells which of its lines led to the weights that survived."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import trained_positions
from training.log import SamplesLog


def write(path: Path, *lines: tuple[str, int, int, list[int]]) -> None:
    """Lines of (session, rank, step, positions), as trainers append them."""
    logs: dict[tuple[str, int], SamplesLog] = {}
    for session, rank, step, positions in lines:
        log = logs.setdefault((session, rank), SamplesLog(path, rank, session))
        log.note(positions, [f"id{position}" for position in positions], 1.0)
        log.write_step(step)


@pytest.mark.parametrize(
    ("lines", "positions"),
    [
        ([("a", 0, 1, [0, 1]), ("a", 0, 2, [2, 3])], [0, 1, 2, 3]),
        ([("a", 0, 1, [0]), ("a", 0, 1, [1]), ("a", 0, 2, [2])], [0, 1, 2]),  # accumulation
        ([("a", 0, 1, [0, 1]), ("a", 0, 2, [2, 3]), ("b", 0, 2, [2, 3])], [0, 1, 2, 3]),
        ([("a", 0, 1, [0, 1]), ("a", 0, 2, [2, 3]), ("b", 0, 2, [2])], [0, 1, 2]),  # a smaller batch
        ([("a", 0, 1, [0]), ("a", 0, 2, [1]), ("a", 0, 3, [2]), ("b", 0, 2, [1, 2])], [0, 1, 2]),  # a larger one
        ([("a", 1, 1, [1]), ("a", 0, 1, [0]), ("a", 0, 2, [2]), ("b", 0, 2, [2]), ("b", 0, 3, [3])], [0, 1, 2, 3]),
        ([("a", 0, 1, [0]), ("a", 0, 2, [1]), ("b", 1, 2, [2]), ("b", 0, 2, [1])], [0, 1, 2]),  # more ranks
        (
            [("a", 0, 1, [0]), ("b", 0, 2, [1]), ("a", 0, 2, [1]), ("b", 0, 3, [2])],
            [0, 1, 2],
        ),  # a dead one's word
        ([("a", 0, 1, [0]), ("a", 0, 2, [0])], [0, 0]),  # what must not be is shown
        ([("a", 0, 1, [0]), ("b", 0, 2, [2])], [0, 2]),
    ],
)
def test_the_lines_behind_the_weights_are_found(
    tmp_path: Path, lines: list[tuple[str, int, int, list[int]]], positions: list[int]
) -> None:
    write(tmp_path / "record.jsonl", *lines)
    assert trained_positions(tmp_path / "record.jsonl") == positions
