"""How many recordings a run may lose: at the scan, and later while decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config import Config
from corpus.rejected_report import LateRejections, check_rejected
from producing.recipe import StreamRecipe


def report_path(config: Config) -> Path:
    """The rejected report."""
    return Path(config.model.output_dir) / "rejected.jsonl"


class RejectionLimit:
    """Reports recordings that fail while decoding, and stops the run when too many do."""

    def __init__(self, recipe: StreamRecipe) -> None:
        """
        Args:
            recipe: the stream's; its recordings know how many the scan has rejected.
        """
        self._data, self._recordings = recipe.config.data, recipe.recordings
        self._report = report_path(recipe.config)
        self._late = LateRejections(self._report, recipe.fingerprint)

    @property
    def rejected(self) -> int:
        """Recordings that can't be used, by the scan and by all sessions of this plan."""
        return self._recordings.rejected + self._late.rows

    def add(self, lines: Sequence[str]) -> None:
        """Adds JSON lines of `LateRejection`s to the report.

        Raises:
            TooManyRejectedError: now more are rejected than `data.max_rejected_fraction` allows.
            RejectedReportError: the report can't be written.
        """
        self._late.add(lines)
        rows = self._recordings.rejected + len(self._recordings)
        data = self._data
        check_rejected(self.rejected, rows, data.max_rejected_fraction, data.train_manifest, self._report)
