"""What of a report its reader should act on, as sentences that say what to do."""

from __future__ import annotations

from typing import Any

DIFFERENT_HOURS = 0.01
"""Share by which the manifest's durations may differ from the files' before it is said."""


def warnings_of(report: dict[str, Any]) -> list[str]:
    """Of one corpus, see `corpus_report.report_corpus`; the worst first."""
    found, name = [], report["manifest"]
    if report["too_many_rejected"]:
        found.append(
            f"{100 * report['rejected_fraction']:.1f} % of {name} can't be used, data.max_rejected_fraction allows "
            f"{100 * report['max_rejected_fraction']:g} %: a run stops. Mend the rows, or raise "
            "--data.max_rejected_fraction if you can do without them"
        )
    if "hours" in report:
        found += [warning for warning in (*map(_said, _facts(report)), _hours_warning(report)) if warning]
    return found


def _said(fact: tuple[int, str, str]) -> str:
    count, one, remedy = fact
    return f"{count:,} {one}: {remedy}" if count else ""


def _facts(report: dict[str, Any]) -> list[tuple[int, str, str]]:
    """Number of recordings, what they are, and what to do."""
    name, decoding = report["manifest"], report["decoding"]
    where = f"in {name}" if decoding["all"] else f"of the {decoding['decoded']:,} that were decoded in {name}"
    return [
        (sum(each["count"] for each in report["failures"]), f"in {name} pass the scan, but can't be used",
         "a run replaces them by others when it comes to them. Mend or leave them out"),
        (report["same_audio_other_transcript"]["count"], f"in {name} have the audio of another one and a different "
         "transcript", "at most one of the two is right"),
        (report["duplicates"]["count"], f"in {name} are the same as another one, audio and transcript",
         "they are trained more often than the rest. Leave them out"),
        (decoding["silent"]["count"], f"{where} are silent", "they teach the model to invent words. Leave them out"),
        (decoding["cancelled"]["count"], f"{where} have channels that cancel each other out",
         "set --data.channel 0, or record or convert them again"),
        (decoding["clipped"]["count"], f"{where} are clipped", "listen to some. Take a better copy where there is one"),
    ]  # fmt: skip


def _hours_warning(report: dict[str, Any]) -> str:
    """Says so when durations in a manifest are not those of the files; else empty."""
    measured, stated = report["hours"], report["hours_by_manifest"]
    failed = sum(each["count"] for each in report["failures"])  # how long these are is not known
    if failed > DIFFERENT_HOURS * report["recordings"] or abs(measured - stated) <= DIFFERENT_HOURS * measured:
        return ""
    return (
        f"the durations in {report['manifest']} add up to {stated:.3g} h, its files hold {measured:.3g} h: correct the "
        "column duration, or leave it out"
    )


def shared_warning(shared: dict[str, Any]) -> str:
    """Of two corpora that have audio in common."""
    count, one, other = shared["count"], shared["in"], shared["also_in"]
    if shared["leak"]:
        return (
            f"{count:,} recordings of {one}, which is for evaluation, are in {other} as well: error rates will look "
            f"better than they are. Take them out of {other}"
        )
    return f"{count:,} recordings of {one} are in {other} as well: they are trained twice. Leave one of the two out"
