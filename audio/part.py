"""Which part of an audio file a recording is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A stretch of an audio file, and which of its channels."""

    offset_s: float = 0.0
    """Where it begins, in seconds, at least 0."""
    duration_s: float | None = None
    """How long it is, in seconds, above 0; None: to the end of the file."""
    channel: int | None = None
    """From 0; None: the mean of all channels, unless they cancel each other out."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the file from its begin to its end."""
        return not self.offset_s and self.duration_s is None

    @property
    def suffix(self) -> str:
        """What tells it from other parts of the file, behind the file's name: "#12.340-15.860", or nothing."""
        channel = "" if self.channel is None else f"#channel={self.channel}"
        if self.is_whole:
            return channel
        end = "" if self.duration_s is None else f"{self.offset_s + self.duration_s:.3f}"
        return f"#{self.offset_s:.3f}-{end}{channel}"


WHOLE = Part()
"""All of a file."""
