"""The rejected report: a JSON line for each recording that could not be used, and the limit on their number."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError
from common.files import cannot_write
from common.redaction import without_secrets


class TooManyRejectedError(UserError):
    """More of a manifest can't be used than `data.max_rejected_fraction` allows."""


class RejectedReportError(UserError):
    """The rejected report cannot be written."""


@dataclass(frozen=True)
class Rejection:
    """A row of a manifest that can't be used."""

    row: int
    """From 0."""
    id: str
    audio: str
    reason: str
    """Its kind, then, after a colon, the details."""

    def to_json(self) -> str:
        """The line of the report, without line end."""
        return json.dumps({**asdict(self), "audio": without_secrets(self.audio)}, ensure_ascii=False)


@dataclass(frozen=True)
class LateRejection(Rejection):
    """A row that passed the scan and then failed to decode; another row took its place in the stream."""

    position: int
    """Where in the plan that was."""
    plan: str
    """Fingerprint of that plan."""


def check_rejected(
    rejected: int, rows: int, allowed_fraction: float, source: str, report: Path, kinds: Counter[str] | None = None
) -> None:
    """Refuses a manifest with too few usable rows.

    Args:
        rejected: rows that can't be used.
        rows: all rows of the manifest.
        allowed_fraction: share of them that may be unusable.
        source: the manifest, for the message.
        report: where each row and its reason is found, for the message.
        kinds: rejected rows by kind of reason, for the message.

    Raises:
        TooManyRejectedError: more are rejected than allowed, or all.
    """
    if rejected < rows and rejected <= allowed_fraction * rows:
        return
    most = ": " + ", ".join(f"{count} × {reason}" for reason, count in kinds.most_common(4)) if kinds else ""
    raise TooManyRejectedError(
        f"{rejected} of {rows} rows ({100 * rejected / rows:.1f} %) of {source} can't be used{most}{_example(report)}. "
        f"data.max_rejected_fraction allows {allowed_fraction:g}; each row and its reason: {report}"
    )


def _example(report: Path) -> str:
    """The first rejection of a report in words, with its details; nothing where there is no report."""
    if not report.exists():
        return ""
    with report.open(encoding="utf-8") as lines:
        first = lines.readline()
    return f" (the first: {json.loads(first)['reason']})" if first.endswith("\n") else ""


def write_report(report: Path, scanned: Path) -> None:
    """Writes the scan's rejections to the report; what earlier sessions added while decoding stays behind them.

    Args:
        report: the file; its folder is made.
        scanned: the scan's own list.
    """
    report.parent.mkdir(parents=True, exist_ok=True)
    late = _late_lines(report)
    shutil.copyfile(scanned, report)
    _append(report, late)


class LateRejections:
    """Adds what fails while decoding to the report, each position and row once, over all sessions of a plan."""

    def __init__(self, report: Path, plan: str) -> None:
        """
        Args:
            report: the file that `write_report` began.
            plan: fingerprint of the plan.
        """
        self._report = report
        earlier = [json.loads(line) for line in _late_lines(report)]
        self._seen = {(values["position"], values["row"]) for values in earlier if values["plan"] == plan}

    @property
    def rows(self) -> int:
        """Rows that failed to decode, each counted once."""
        return len({row for _, row in self._seen})

    def add(self, lines: Iterable[str]) -> None:
        """Appends JSON lines of `LateRejection`s to the report, but for those that are there already.

        Raises:
            RejectedReportError: the disk is full, or the folder is gone.
        """
        new = []
        for line in lines:
            values = json.loads(line)
            key = (values["position"], values["row"])
            if key not in self._seen:
                self._seen.add(key)
                new.append(line)
        if new:
            try:
                _append(self._report, new)
            except OSError as error:
                remedy = "make room, or put its folder back, and start again"
                raise cannot_write(RejectedReportError, self._report, error, remedy) from error


def _late_lines(report: Path) -> list[str]:
    if not report.exists():
        return []
    return [line for line in report.read_text(encoding="utf-8").split("\n") if _is_late(line)]


def _is_late(line: str) -> bool:
    try:
        return "position" in json.loads(line)
    except ValueError:  # the disk was full in the middle of it: the recording fails, and is noted, again
        return False


def _append(report: Path, lines: Iterable[str]) -> None:
    with report.open("a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
