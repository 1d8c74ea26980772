"""The report for people: what was found in each corpus, and at the end what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 110
BAR = 40
"""Characters of the longest bar of a histogram."""
TRANSCRIPT = 50
"""Characters of a transcript that are shown."""
SHOWN = {"clipped": "clipped", "silent": "silent", "cancelled": "channels cancel"}


def describe(report: dict[str, Any]) -> str:
    """The report of `tools.check` as text."""
    lines = [line for corpus in report["corpora"] for line in (*_corpus(corpus), "")]
    for shared in report["shared_audio"]:
        lines += [f"{shared['in']}: {shared['count']:,} recordings with audio that {shared['also_in']} has as well"]
        lines += [f"    {_name(pair['in'])}  is  {_name(pair['also_in'])}" for pair in shared["examples"]]
        lines += [""]
    if not report["warnings"]:
        return "\n".join([*lines, "Nothing to mend was found."])
    lines += ["What to do:"]
    for warning in report["warnings"]:
        lines += textwrap.wrap(warning, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
    return "\n".join(lines)


def _corpus(corpus: dict[str, Any]) -> Iterable[str]:
    yield f"{corpus['manifest']}, for {'training' if corpus['role'] == 'train' else 'evaluation'}"
    yield from _columns([("  rows", f"{corpus['rows']:,}"), ("  usable", f"{corpus['recordings']:,}"),
                         ("  rejected", f"{corpus['rejected']:,}")])  # fmt: skip
    yield from _rejected(corpus)
    if "hours" not in corpus:
        return
    for section in (_audio, _durations, _labels, _characters, _repeats, _decoding, _needs):
        yield ""
        yield from section(corpus)


def _rejected(corpus: dict[str, Any]) -> Iterable[str]:
    for reason in corpus["rejected_by_reason"]:
        yield f"    {reason['count']:,} × {reason['reason']}"
        yield from (f"      row {each['row']}  {each['audio']}  {each['reason']}" for each in reason["examples"])
    if corpus["rejected"]:
        yield f"    each row and its reason: {corpus['rejected_file']}"
    for failure in corpus.get("failures", ()):
        yield f"    {failure['count']:,} × {failure['reason']} (passes the scan, fails later)"
        yield from (f"      row {each['row']}  {each['audio']}  {each['reason']}" for each in failure["examples"])


def _audio(corpus: dict[str, Any]) -> Iterable[str]:
    yield f"  Audio: {corpus['hours']:.2f} h"
    yield from _columns(
        [
            (f"    {each['sampling_rate_hz']:,} Hz", _plural(each["channels"], "channel"), f"{each['recordings']:,}")
            for each in corpus["audio_formats"]
        ]
    )
    yield from _columns(
        [
            (f"    {each['language'] or 'no language'}, {each['task']}",
             "" if each["from_manifest"] else "(the run's)", f"{each['recordings']:,}", f"{each['hours']:.2f} h")
            for each in corpus["languages"]
        ]
    )  # fmt: skip


def _durations(corpus: dict[str, Any]) -> Iterable[str]:
    yield f"  Durations in seconds: {_spread(corpus['duration_s'], '.2f')}"
    largest = max(each["recordings"] for each in corpus["duration_histogram"]) or 1
    yield from _columns(
        [
            (f"    {each['from_s']:g}", f"to {each['to_s']:g}", f"{each['recordings']:,}", f"{each['hours']:.2f} h",
             "#" * -(-BAR * each["recordings"] // largest))
            for each in corpus["duration_histogram"]
        ],
        right=(0, 2, 3),
    )  # fmt: skip
    for title, key in (("Longest", "longest"), ("Shortest", "shortest")):
        yield f"  {title}:"
        yield from _extremes(corpus[key], lambda each: f"{each['duration_s']:.2f} s")


def _labels(corpus: dict[str, Any]) -> Iterable[str]:
    labels = corpus["label_tokens"]
    yield f"  Label tokens: {_spread(labels, '.0f')}; the model takes {labels['limit']}"
    titles = {
        "most_tokens_per_second": "Most tokens per second (more words than were said?):",
        "fewest_tokens_per_second": "Fewest tokens per second (words left out, or a long silence?):",
    }
    for key, title in titles.items():
        yield f"  {title}"
        yield from _extremes(corpus[key], lambda each: f"{each['tokens'] / each['duration_s']:.1f}/s")


def _characters(corpus: dict[str, Any]) -> Iterable[str]:
    found = corpus["characters"]
    times = "once" if found["rare_at_most"] == 1 else f"at most {found['rare_at_most']} times"
    yield f"  Characters: {found['different']:,} different ones, {found['rare']:,} of them in a transcript {times}"
    if found["rare"]:
        yield "  Look for typing errors and letters of other scripts among these:"
    yield from _columns(
        [
            (f"    {_printable(each['character'])}", each["code"], each["name"], f"{each['recordings']:,} ×",
             _name(each["example"]), _short(each["example"]["transcript"]))
            for each in found["listed"]
        ]
    )  # fmt: skip
    if found["rare"] > len(found["listed"]):
        yield f"    … and {found['rare'] - len(found['listed']):,} more"


def _repeats(corpus: dict[str, Any]) -> Iterable[str]:
    yield "  Repeated audio:"
    kinds = {"duplicates": "the same transcript", "same_audio_other_transcript": "another transcript"}
    for key, kind in kinds.items():
        yield f"    {corpus[key]['count']:,} with {kind}"
        for pair in corpus[key]["examples"]:
            again = _short(pair["again"]["transcript"])
            yield f"      {_name(pair['first'])}  {_short(pair['first']['transcript'])}"
            yield f"      {_name(pair['again'])}  {again}"
    if corpus["audio_not_compared"]:
        yield f"    {corpus['audio_not_compared']:,} not compared, unreadable or at URLs; --deep fetches those"


def _decoding(corpus: dict[str, Any]) -> Iterable[str]:
    found = corpus["decoding"]
    rest = "all" if found["all"] else f"a sample of {found['decoded']:,}; --deep decodes all"
    yield f"  Decoded: {rest}"
    for key, name in SHOWN.items():
        yield f"    {found[key]['count']:,} {name}"
        yield from (f"      {_name(each)}  {_short(each['transcript'])}" for each in found[key]["examples"])


def _needs(corpus: dict[str, Any]) -> Iterable[str]:
    redis, epoch = corpus["redis"], corpus["epoch"]
    yield "  What training takes:"
    if redis:
        yield (
            f"    Redis: {redis['mb_per_hour']:.0f} MB for an hour of audio, {redis['kb_per_sample']:.0f} kB a sample; "
            f"redis.max_memory_gb {redis['max_memory_gb']:g} holds {redis['hours_that_fit']:,.1f} h"
        )
    if epoch:
        speed = f"{epoch['samples_per_second']:g} samples/s"
        yield (
            f"    an epoch: {epoch['samples']:,} samples, {_time(epoch['lasts_s'])} at {speed}; "
            f"{_plural(epoch['epochs'], 'epoch')}: {_time(epoch['all_epochs_last_s'])}"
        )


def _extremes(recordings: Sequence[dict[str, Any]], figure: Any) -> Iterable[str]:
    return _columns(
        [(f"    {figure(each)}", _name(each), _short(each["transcript"])) for each in recordings], right=(0,)
    )


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Iterable[str]:
    """Rows as lines, columns below each other, those in `right` aligned to the right."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            value.rjust(width) if number in right else value.ljust(width)
            for number, (value, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _spread(values: dict[str, float], form: str) -> str:
    names = {"min": "least", "p5": "5 %", "median": "median", "mean": "mean", "p95": "95 %", "max": "most"}
    return ", ".join(f"{name} {values[key]:{form}}" for key, name in names.items() if key in values)


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _name(recording: dict[str, Any]) -> str:
    return f"row {recording['row']} {recording['id']}"


def _short(transcript: str) -> str:
    return transcript if len(transcript) <= TRANSCRIPT else transcript[: TRANSCRIPT - 1] + "…"


def _printable(character: str) -> str:
    return character if character.isprintable() else " "


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
