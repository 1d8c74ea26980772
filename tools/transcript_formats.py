"""Transcripts as text, JSON and subtitles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tools.speech_to_text import Transcript


def as_text(transcripts: Sequence[Transcript]) -> str:
    """A line per file; behind its name and a tab, where there are several."""
    several = len(transcripts) > 1
    return "".join(f"{t.file}\t{t.text}\n" if several else f"{t.text}\n" for t in transcripts)


def as_json(transcripts: Sequence[Transcript]) -> str:
    """A list of `{"file", "text", "segments": [{"start", "end", "text"}]}`, times in seconds."""
    content = [
        {
            "file": t.file,
            "text": t.text,
            "segments": [{"start": round(s.start, 3), "end": round(s.end, 3), "text": s.text} for s in t.segments],
        }
        for t in transcripts
    ]
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def as_srt(transcripts: Sequence[Transcript]) -> str:
    """SubRip: numbered cues, times with a comma. Those of several files follow each other."""
    return "\n".join(_cues(transcript, ",", numbered=True) for transcript in transcripts)


def as_vtt(transcripts: Sequence[Transcript]) -> str:
    """WebVTT: cues, times with a point. Source: W3C, WebVTT."""
    return "\n".join("WEBVTT\n\n" + _cues(transcript, ".", numbered=False) for transcript in transcripts)


FORMATS: dict[str, Callable[[Sequence[Transcript]], str]] = {
    "text": as_text,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
}
"""By the name that `--format` takes."""


def _cues(transcript: Transcript, point: str, numbered: bool) -> str:
    cues = [
        (f"{number}\n" if numbered else "")
        + f"{_time(segment.start, point)} --> {_time(segment.end, point)}\n"
        + segment.text.replace("-->", "→")
        for number, segment in enumerate(transcript.segments, 1)
    ]
    return "\n\n".join(cues) + "\n" if cues else ""


def _time(seconds: float, point: str) -> str:
    """00:01:02.345, with `point` between seconds and milliseconds."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
